"""`python -m prompt_tuning.train`: see `prompt_tuning.train.loop`."""

import gc

from prompt_tuning import command_line
from prompt_tuning.train import loop

if __name__ == "__main__":
  # What importing and tracing make stays. At Python's own thresholds the
  # collector walks over all of it time and again, a twentieth of the start.
  gc.set_threshold(100_000, 20, 50)
  command_line.main(loop.train)
