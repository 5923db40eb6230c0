"""The program that says whether a CRUXEval answer is right."""

from collections.abc import Mapping, Sequence

from prompt_tuning.execution import prediction_files, scoring

SECONDS = 10.0  # the original's limit, there by the clock
KS = (1, 5)

KEY = "id"
KEYS = ("code", "input", "output")


def program(problem: Mapping[str, str], answer: str, mode: str) -> str | None:
  """The function and an assertion; None for an answer of the wrong kind.

  An answer that asks for an input must call `f`; one for an output must not
  be the call that it is asked for.

  Args:
    problem: `code`, `input` and `output`.
    answer: an expression.
    mode: "input" or "output", what was asked for.
  """
  if mode == "input" and "f(" not in answer:
    return None
  if mode == "output" and f"f({problem['input']})" in answer:
    return None
  return f"{problem['code']}\nassert {problem['output']} == {answer}"


def samples(
    problems: Mapping[str, Mapping[str, str]],
    predictions: Sequence[prediction_files.Prediction], mode: str,
) -> list[scoring.Sample]:
  """The predictions as programs to run."""
  return [
      scoring.Sample(one.task_id, one.sample,
                     program(problems[one.task_id], one.text, mode))
      for one in predictions]
