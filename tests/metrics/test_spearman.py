"""Spearman correlation against scipy, with ties."""

import math

import pytest
import scipy.stats

from prompt_tuning.metrics import spearman

TARGETS = [0.0, 1.2, 3.4, 3.4, 5.0]


@pytest.mark.parametrize("predictions", [
    [0.2, 1.0, 3.0, 4.2, 4.8], [5.0, -1.0, 2.0, 2.0, 0.4]])
def test_scipys(predictions):
  expected = scipy.stats.spearmanr(TARGETS, predictions)[0]
  assert spearman.spearman(TARGETS, predictions) == {
      "spearman_corrcoef": pytest.approx(100 * expected)}


def test_a_constant_tells_nothing():
  assert math.isnan(
      spearman.spearman(TARGETS, [1.0] * 5)["spearman_corrcoef"])
