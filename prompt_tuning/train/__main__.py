"""`python -m prompt_tuning.train`: see `prompt_tuning.train.loop`."""

from prompt_tuning import command_line
from prompt_tuning.train import loop

if __name__ == "__main__":
  command_line.main(loop.train)
