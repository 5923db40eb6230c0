"""Recycles many prompts, between many models, as one file describes them.

    python -m prompt_tuning.scripts.recycle_study --config sst2.json

prints a row for each recycled prompt, with the metrics of those that were
evaluated, and writes the original's tables into root_dir. Interrupted and
started again, it goes on. Evaluate with the flags in cli_args-{dataset}.txt:

    xargs -L 1 python -m prompt_tuning.eval --gin_file=models/… \\
      --gin_file=prompt_tuning/configs/runs/prompt_eval.gin \\
      --gin.TASK_FEATURE_LENGTHS="{'inputs': 512, 'targets': 8}" \\
      < cli_args-sst2.txt

and start this once more for the tables. The file is JSON, in the form of the
original's prompt_tuning/recycling/configs, which work as they are;
`prompt_tuning/transfer/recycling_study.py` describes it.
"""

import argparse
import sys

from prompt_tuning import errors
from prompt_tuning.train import comparison
from prompt_tuning.transfer import recycling_study


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.recycle_study",
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", required=True, metavar="JSON")
  flags = parser.parse_args(arguments)
  with errors.reported():
    config = recycling_study.read_config(flags.config)
    records = recycling_study.run(
        config, lambda sentence: print(sentence, file=sys.stderr, flush=True))
    print(comparison.markdown(records), end="")
    for path in recycling_study.write_tables(config, records):
      print(path, file=sys.stderr)


if __name__ == "__main__":
  sys.exit(main())
