"""Cuts off what a model wrote behind an MBPP function, in two stages.

    python -m prompt_tuning.scripts.postprocess_mbpp --path mbxp_solutions.json

writes, beside the file, mbxp_solutions_post_processed_stage1.json and
…_stage2.json, and …_post_processed.json with both versions of every sample,
one after the other: pass@1 of that one is what LOPA's tables have
(prompt_tuning/execution/completions.py).
"""

import argparse
import pathlib
import sys

from prompt_tuning import errors
from prompt_tuning.execution import completions, mbpp, prediction_files


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.postprocess_mbpp",
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      "--path", required=True, help="predictions, a JSON object a line")
  parser.add_argument(
      "--stage2", choices=("until_return", "reindent"), default="until_return",
      help="cut behind the last return statement, or indent as the prompt "
      "does, which the original does for Meta-Llama-3-8B (default: "
      "until_return)")
  parser.add_argument(
      "--problem_file", default=None, metavar="PATH",
      help="the benchmark's file, for its prompts' indents (reindent)")
  flags = parser.parse_args(arguments)
  with errors.reported():
    for path, count in convert(flags.path, flags.stage2, flags.problem_file):
      print(f"{path}: {count} completions")


def convert(
    path: str, stage2: str = "until_return", problem_file: str | None = None,
) -> list[tuple[pathlib.Path, int]]:
  """Writes the three files; the input stays as it is.

  Args:
    path: predictions; all keys but `completion` are kept.
    stage2: "until_return" or "reindent".
    problem_file: the prompts that "reindent" needs.

  Returns:
    The files, each with how many completions it has.

  Raises:
    UserError: if a file is not what it should be; nothing is written then.
  """
  rows = [row for _, row in prediction_files.rows(path)]
  problems = None
  if stage2 == "reindent":
    if problem_file is None:
      raise errors.UserError(
          "--stage2 reindent indents as the prompts do: give them by "
          "--problem_file.")
    problems = prediction_files.problems(problem_file, mbpp.KEY, ("prompt",))
  for number, row in prediction_files.rows(path):
    if not isinstance(row.get("completion"), str):
      raise errors.UserError(
          f"{path} line {number} has no text under 'completion': give the "
          "predictions as they were generated.")
    if problems is not None and row.get("task_id") not in problems:
      raise errors.UserError(
          f"{path} line {number} is of {row.get('task_id')!r}, which "
          f"{problem_file} lacks: give the problems that were predicted.")
  first = [row | {"completion": completions.until_top_level(row["completion"])}
           for row in rows]
  second = [
      row | {"completion":
             completions.until_return(row["completion"]) if problems is None
             else completions.reindented(
                 row["completion"], problems[row["task_id"]]["prompt"])}
      for row in first]
  both = [row for pair in zip(first, second) for row in pair]
  source = pathlib.Path(path)
  written = []
  for ending, content in (("_stage1", first), ("_stage2", second), ("", both)):
    target = source.with_name(
        f"{source.stem}_post_processed{ending}{source.suffix}")
    prediction_files.write_rows(target, content)
    written.append((target, len(content)))
  return written


if __name__ == "__main__":
  sys.exit(main())
