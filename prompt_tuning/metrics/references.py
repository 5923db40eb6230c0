"""Targets with one right text or several."""

from collections.abc import Sequence
from typing import Any


def texts_of(target: Any) -> Sequence[Any]:
  """The right texts of a target, which is one text or a list of them."""
  return target if isinstance(target, (list, tuple)) else [target]


def paired(
    targets: Sequence[Any], predictions: Sequence[Any]
) -> list[tuple[Any, list[Any]]]:
  """Each prediction with the right texts of its target.

  Raises:
    ValueError: their numbers differ, or a target has no text.
  """
  if len(targets) != len(predictions):
    raise ValueError(
        f"{len(targets)} targets against {len(predictions)} predictions")
  pairs = [(prediction, list(texts_of(target)))
           for target, prediction in zip(targets, predictions)]
  for place, (_, texts) in enumerate(pairs, start=1):
    if not texts:
      raise ValueError(f"target {place} has no text to compare with")
  return pairs


def streams(
    pairs: Sequence[tuple[Any, Sequence[Any]]]
) -> tuple[list[Any], list[list[Any]]]:
  """What sacrebleu takes: the first references of all, the second ones, …

  Args:
    pairs: N predictions with their right texts, R at most.

  Returns:
    N predictions and R lists of N texts, None where there are fewer.
  """
  most = max((len(texts) for _, texts in pairs), default=0)
  return [prediction for prediction, _ in pairs], [
      [texts[i] if i < len(texts) else None for _, texts in pairs]
      for i in range(most)]
