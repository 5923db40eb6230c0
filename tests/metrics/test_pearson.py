"""Pearson correlation against scipy."""

import math

import pytest
import scipy.stats

from prompt_tuning.metrics import pearson

TARGETS = [0.0, 1.2, 3.4, 3.4, 5.0]


@pytest.mark.parametrize("predictions", [
    [0.2, 1.0, 3.0, 4.2, 4.8], [5.0, -1.0, 2.0, 2.0, 0.4]])
def test_scipys(predictions):
  expected = scipy.stats.pearsonr(TARGETS, predictions)[0]
  assert pearson.pearson(TARGETS, predictions) == {
      "pearson_corrcoef": pytest.approx(100 * expected)}


def test_a_constant_tells_nothing():
  assert math.isnan(
      pearson.pearson(TARGETS, [1.0] * 5)["pearson_corrcoef"])
