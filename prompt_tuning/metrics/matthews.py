"""Matthews correlation of classes."""

from collections.abc import Sequence
import math

import numpy as np


def matthews(
    targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """Correlation of targets and predictions as classes.

  For more than two classes, of which an invalid prediction (-1) is one, it is
  R_K of Gorodkin 2004, as in scikit-learn.

  Args:
    targets: N classes.
    predictions: N classes.

  Returns:
    {"matthews_corrcoef": -100 to 100; 0 if either is all one class}.
  """
  classes, codes = np.unique(
      np.array([targets, predictions]), return_inverse=True)
  ones = np.eye(len(classes))[codes.reshape(2, -1)]  # [2, N, classes]
  truth, guess = ones - ones.mean(axis=1, keepdims=True)
  spread = math.sqrt((truth * truth).sum() * (guess * guess).sum())
  together = float((truth * guess).sum())
  return {"matthews_corrcoef": 100.0 * together / spread if spread else 0.0}
