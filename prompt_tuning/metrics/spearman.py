"""Spearman correlation of numbers."""

from collections.abc import Sequence

import numpy as np

from prompt_tuning.metrics import pearson


def spearman(
    targets: Sequence[float], predictions: Sequence[float]
) -> dict[str, float]:
  """Pearson correlation of ranks; equal numbers share their mean rank.

  Args:
    targets: N numbers.
    predictions: N numbers.

  Returns:
    {"spearman_corrcoef": -100 to 100; NaN if either is constant}.
  """
  return {"spearman_corrcoef": 100.0 * pearson.correlation(
      _ranks(targets), _ranks(predictions))}


def _ranks(values: Sequence[float]) -> np.ndarray:
  _, places, counts = np.unique(
      np.asarray(values), return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[places]
