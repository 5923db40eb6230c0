"""Pearson correlation of numbers."""

from collections.abc import Sequence
import math

import numpy as np


def pearson(
    targets: Sequence[float], predictions: Sequence[float]
) -> dict[str, float]:
  """How near targets and predictions are to a line.

  Args:
    targets: N numbers.
    predictions: N numbers.

  Returns:
    {"pearson_corrcoef": -100 to 100; NaN if either is constant}.
  """
  return {"pearson_corrcoef": 100.0 * correlation(targets, predictions)}


def correlation(left: Sequence[float], right: Sequence[float]) -> float:
  """Pearson's r of two sequences, -1 to 1; NaN if either is constant."""
  pair = np.array([left, right], np.float64)
  one, other = pair - pair.mean(axis=1, keepdims=True)
  spread = math.sqrt((one @ one) * (other @ other))
  return float(one @ other) / spread if spread else math.nan
