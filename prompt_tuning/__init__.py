"""Adapt a frozen language model with something small.

Importing the package imports nothing heavy; import the module you need.
"""

from prompt_tuning.versions import __version__ as __version__
