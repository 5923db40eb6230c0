"""Exact match of texts."""

from collections.abc import Sequence

from prompt_tuning.metrics import references


def accuracy(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """How often a prediction is its target, outer white space aside.

  Args:
    targets: N texts, or lists of texts that are all right.
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
      str(prediction).strip() in [
          str(text).strip() for text in references.texts_of(target)]
      for target, prediction in zip(targets, predictions))
  return {"accuracy": 100.0 * hits / len(targets)}
