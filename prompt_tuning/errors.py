"""The one exception for bad input, and how commands report it.

A `UserError` carries one sentence that says what is wrong, where, and what to
do. Commands print that sentence and exit with status 2; a traceback is for
bugs of ours, never for a mistake in a file or a flag.
"""

import contextlib
import sys


class UserError(ValueError):
  """Bad input: one sentence that names the place and the way out."""


@contextlib.contextmanager
def reported():
  """Turns a `UserError` raised inside into its sentence and exit status 2."""
  try:
    yield
  except UserError as error:
    sentence = " ".join(str(error).split())  # on one line, whatever it quotes
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
