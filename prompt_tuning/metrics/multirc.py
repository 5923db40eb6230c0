"""MultiRC: several answers to one question, each right or wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.metrics import f1


def multirc(
    targets: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """F1 over all answers, and questions whose answers are all judged right.

  Args:
    targets: `value` (0 or 1) and `group`, the question, of N answers.
    predictions: `value` of each.

  Returns:
    {"f1": percent, "exact_match": percent of questions}.
  """
  pairs = [(target["value"], prediction["value"])
           for target, prediction in zip(targets, predictions, strict=True)]
  found = f1.f1(*zip(*pairs)) if pairs else {"f1": 0.0}
  questions = {}
  for target, (right, guess) in zip(targets, pairs):
    group = target["group"]
    questions[group] = questions.get(group, True) and right == guess
  return {**found, "exact_match": (
      100.0 * sum(questions.values()) / max(len(questions), 1))}
