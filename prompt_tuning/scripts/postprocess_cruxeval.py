"""Takes the answers out of the texts that were generated for CRUXEval.

    python -m prompt_tuning.scripts.postprocess_cruxeval --mode input \\
        --path output_raw.json --problem_file cruxeval.jsonl

reads {id: [prompt and generated text, …]} and writes {id: [answer, …]} into
output.json beside it (prompt_tuning/execution/answers.py).
"""

import argparse
import json
import pathlib
import sys

from prompt_tuning import errors, formats
from prompt_tuning.data import templates
from prompt_tuning.execution import answers, cruxeval, prediction_files


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.postprocess_cruxeval",
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      "--path", required=True, help="predictions, a JSON object")
  parser.add_argument(
      "--mode", required=True, choices=answers.MODES,
      help="what was asked for")
  parser.add_argument(
      "--problem_file", required=True, metavar="PATH",
      help="the benchmark's own file")
  parser.add_argument(
      "--template", default=None, metavar="PATH",
      help="the prompts' template (default: the task's own)")
  parser.add_argument(
      "--output", default=None, metavar="PATH",
      help="what to write (default: output.json for output_raw.json, "
      "otherwise the name with _answers)")
  flags = parser.parse_args(arguments)
  with errors.reported():
    output = pathlib.Path(flags.output or default_output(flags.path))
    found = convert(flags.path, flags.mode, flags.problem_file, flags.template)
    if output.resolve() == pathlib.Path(flags.path).resolve():
      raise errors.UserError(
          f"--output {output} would overwrite --path: choose another name.")
    formats.write_whole(output, (json.dumps(found, indent=1) + "\n").encode())
    empty = sum(not text for texts in found.values() for text in texts)
    print(f"{output}: {len(found)} problems, {empty} texts without an answer")


def default_output(path: str) -> pathlib.Path:
  """`output_raw.json` -> `output.json`, `x.json` -> `x_answers.json`."""
  source = pathlib.Path(path)
  if source.stem.endswith("_raw"):
    return source.with_name(source.stem.removesuffix("_raw") + source.suffix)
  return source.with_name(f"{source.stem}_answers{source.suffix}")


def convert(
    path: str, mode: str, problem_file: str, template: str | None = None,
) -> dict[str, list[str]]:
  """The answers of a file.

  Args:
    path: {id: [prompt and generated text, …]}.
    mode: "input" or "output".
    problem_file: the benchmark's file.
    template: of the prompts; None for the task's own.

  Raises:
    UserError: if a file is not what it should be.
  """
  problems = prediction_files.problems(
      problem_file, cruxeval.KEY, cruxeval.KEYS)
  given = "output" if mode == "input" else "input"
  prompt = templates.Template(
      template or f"cruxeval_{mode}", ["code", given], [mode])
  found = {}
  for one in prediction_files.samples_by_problem(path, problems):
    found.setdefault(one.task_id, []).append(answers.answer(
        one.text, prompt.fill(problems[one.task_id]), mode))
  return found


if __name__ == "__main__":
  sys.exit(main())
