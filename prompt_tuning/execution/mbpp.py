"""The program that says whether an MBPP completion works."""

from collections.abc import Mapping, Sequence

from prompt_tuning.execution import prediction_files, scoring

SECONDS = 15.0  # the original's limit, there by the clock
KS = (1, 2, 5, 10, 50, 100, 1000)

KEY = "task_id"
KEYS = ("prompt", "entry_point", "test")


def program(problem: Mapping[str, str], completion: str) -> str:
  """The function and its test, which ends in an exception if it fails.

  Args:
    problem: `prompt`, `test`, which defines `check`, and `entry_point`, the
      name of the function.
    completion: what stands behind the prompt.
  """
  return (f"{problem['prompt']}{completion}\n{problem['test']}\n"
          f"check({problem['entry_point']})")


def samples(
    problems: Mapping[str, Mapping[str, str]],
    predictions: Sequence[prediction_files.Prediction],
) -> list[scoring.Sample]:
  """The predictions as programs to run."""
  return [
      scoring.Sample(one.task_id, one.sample,
                     program(problems[one.task_id], one.text))
      for one in predictions]
