"""ReCoRD: the entity that is missing in a query."""

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.metrics import squad


def record(
    targets: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """SQuAD's exact match and F1; a query counts once.

  The examples repeat a query for each of its right answers, which is meant
  for training.

  Args:
    targets: `value`, all right answers, and `group`, the query, of N examples.
    predictions: `value`, the answer of each.

  Returns:
    {"em": percent, "f1": percent}.
  """
  first = {}
  for target, prediction in zip(targets, predictions, strict=True):
    first.setdefault(target["group"], (target["value"], prediction["value"]))
  return squad.squad(*(zip(*first.values()) if first else ((), ())))
