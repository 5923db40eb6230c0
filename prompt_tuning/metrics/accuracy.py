"""Exact match of texts."""

from collections.abc import Sequence


def accuracy(
    targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """How often a prediction is its target, outer white space aside.

  Args:
    targets: N texts.
    predictions: N texts.

  Returns:
    {"accuracy": percent from 0 to 100}, as seqio's tasks report it.
  """
  if len(targets) != len(predictions):
    raise ValueError(
        f"{len(targets)} targets against {len(predictions)} predictions")
  if not targets:
    return {"accuracy": 0.0}
  hits = sum(
      str(target).strip() == str(prediction).strip()
      for target, prediction in zip(targets, predictions))
  return {"accuracy": 100.0 * hits / len(targets)}
