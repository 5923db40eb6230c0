"""Matthews correlation against scikit-learn 1.9's figures."""

import pytest

from prompt_tuning.metrics import matthews


@pytest.mark.parametrize("targets, predictions, expected", [
    ([0, 1, 1, 0, 1], [0, 1, 0, 0, 1], 66.66666666666666),
    # An invalid prediction is a third class.
    ([0, 1, 1, 0, 1, 0, 1, 1, 0, 0], [0, 1, 0, 0, -1, 1, 1, 1, 0, -1],
     35.35533905932737),
    ([0, 1], [1, 0], -100.0),
    ([0, 1, 1], [1, 1, 1], 0.0),
    ([1, 1], [1, 1], 0.0),
])
def test_pairs(targets, predictions, expected):
  assert matthews.matthews(targets, predictions) == {
      "matthews_corrcoef": pytest.approx(expected)}
