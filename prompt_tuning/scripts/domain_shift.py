"""Puts evaluations on several tasks side by side: mean ± standard deviation.

    python -m prompt_tuning.scripts.domain_shift \\
        --source "prompt tuning" evals/squad_prompts/prompts/* \\
        --source "model tuning" evals/squad_model_seed_*

prints a row for each metric of each task and a column for each source, as in
the tables of Lester et al. 2021 (arXiv 2104.08691), section 5. A source's
folders are its runs: each EVAL_OUTPUT_DIR of `prompt_tuning.eval`, or the
folders below `prompts/` that `prompt_tuning.transfer.ensemble` writes, which
evaluates all seeds of a prompt at once. Evaluate them on a mixture, or several
tasks one after the other with the same EVAL_OUTPUT_DIR.
"""

import argparse
import sys

from prompt_tuning import errors
from prompt_tuning.train import comparison
from prompt_tuning.transfer import shift


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.domain_shift",
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      "--source", action="append", nargs="+", required=True,
      metavar=("NAME", "FOLDER"), help="a column, and the folders of its runs")
  flags = parser.parse_args(arguments)
  with errors.reported():
    sources = {}
    for name, *folders in flags.source:
      if not folders:
        raise errors.UserError(
            f"--source {name} names no folder: give its runs behind its name.")
      if name in sources:
        raise errors.UserError(
            f"--source {name} is there twice: name all its runs behind one.")
      sources[name] = folders
    print(comparison.markdown(shift.table(sources)), end="")


if __name__ == "__main__":
  sys.exit(main())
