"""Runs CRUXEval answers: pass@k with intervals.

    python -m prompt_tuning.scripts.score_cruxeval --execute_generated_code \\
        --predictions output.json --mode input --problem_file cruxeval.jsonl

Predictions are a JSON object of {id: [answer, …]}, as `postprocess_cruxeval`
writes it. Problems without one do not count, as in the original scorer; an
answer of the wrong kind does, where the original left it out
(--skipped leave_out). A run that was cut off goes on where it was when it is
called again.
"""

import sys

from prompt_tuning import errors
from prompt_tuning.execution import (
    answers,
    command_line,
    cruxeval,
    prediction_files,
)


def main(arguments=None):
  parser = command_line.parser(
      "score_cruxeval", __doc__, cruxeval.SECONDS, cruxeval.KS,
      missing="leave_out")
  parser.add_argument(
      "--mode", required=True, choices=answers.MODES,
      help="what was asked for")
  parser.add_argument(
      "--skipped", choices=("wrong", "leave_out"), default="wrong",
      help="answers of the wrong kind, which are not run, count as failed, or "
      "do not count unless all of a problem's samples failed, and pass@k of a "
      "problem with fewer than k samples is 0, as in CRUXEval's own scorer "
      "(default: wrong)")
  flags = parser.parse_args(arguments)
  with errors.reported():
    problems = prediction_files.problems(
        flags.problem_file, cruxeval.KEY, cruxeval.KEYS)
    predictions = prediction_files.samples_by_problem(
        flags.predictions, problems)
    missing = command_line.missing_problems(flags, problems, predictions)
    command_line.score(
        flags, cruxeval.samples(problems, predictions, flags.mode), missing,
        flags.skipped == "leave_out")


if __name__ == "__main__":
  sys.exit(main())
