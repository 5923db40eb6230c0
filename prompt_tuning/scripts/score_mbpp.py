"""Runs MBPP completions against their tests: pass@k with intervals.

    python -m prompt_tuning.scripts.score_mbpp --execute_generated_code \\
        --predictions mbxp_solutions_post_processed.json \\
        --problem_file mbpp_test_release_v1.jsonl

Predictions are lines of {"task_id", "completion"}, several of a problem being
its samples. `mbxp_solutions_post_processed.json` has both versions of each
sample, and its pass@1 is the average that LOPA's tables have. A run that was
cut off goes on where it was when it is called again.
"""

import sys

from prompt_tuning import errors
from prompt_tuning.execution import command_line, mbpp, prediction_files


def main(arguments=None):
  parser = command_line.parser(
      "score_mbpp", __doc__, mbpp.SECONDS, mbpp.KS, missing="refuse")
  flags = parser.parse_args(arguments)
  with errors.reported():
    problems = prediction_files.problems(
        flags.problem_file, mbpp.KEY, mbpp.KEYS)
    predictions = prediction_files.samples_by_line(flags.predictions, problems)
    missing = command_line.missing_problems(flags, problems, predictions)
    command_line.score(flags, mbpp.samples(problems, predictions), missing)


if __name__ == "__main__":
  sys.exit(main())
