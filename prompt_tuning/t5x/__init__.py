"""Our modules under T5X, and our prompts inside Flaxformer.

T5X and Flaxformer are on no package index; docs/t5x.md says how to install
them. Nothing outside this package imports them, nor this package.
"""

import importlib.util

if importlib.util.find_spec("t5x") is None:
  raise ImportError(
      "T5X is not installed: runs/t5x_*.gin are for `python -m t5x.train`, and "
      "docs/t5x.md says how to get it; python -m prompt_tuning.train with "
      "runs/prompt_finetune.gin needs no T5X.")
