"""Macro F1 by hand."""

import pytest

from prompt_tuning.metrics import multiclass_f1


@pytest.mark.parametrize("targets, predictions, expected", [
    ([0, 1, 2], [0, 1, 2], 100.0),
    # F1 of the classes: 2/3, 2/3, 0.
    ([0, 1, 2], [0, 1, 1], 100 * (1 + 2 / 3) / 3),
    ([0, 1, 2], [0, -1, 2], 100 * 2 / 3),
    ([0, 0, 0], [0, 0, 0], 100 / 3),  # classes that never occur count as 0
])
def test_three_classes(targets, predictions, expected):
  assert multiclass_f1.multiclass_f1(targets, predictions, 3) == {
      "mean_3class_f1": pytest.approx(expected)}
