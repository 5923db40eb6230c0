"""pass@k against the binomials as fractions; intervals against the normal."""

import fractions
import math

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.execution import pass_at_k


@pytest.mark.parametrize("samples", [1, 2, 5, 30])
def test_is_the_quotient_of_binomials(samples):
  for correct in range(samples + 1):
    for k in range(1, samples + 1):
      exact = 1 - fractions.Fraction(
          math.comb(samples - correct, k), math.comb(samples, k))

      assert pass_at_k.pass_at_k(samples, correct, k) == pytest.approx(
          float(exact), abs=1e-12)


def test_is_stable_where_binomials_overflow():
  exact = 1 - fractions.Fraction(
      math.comb(99_000, 1000), math.comb(10**5, 1000))

  assert pass_at_k.pass_at_k(10**5, 1000, 1000) == pytest.approx(
      float(exact), rel=1e-9)


@pytest.mark.parametrize("arguments", [
    (1, 2, 1), (1, 0, 2), (5, -1, 1), (5, 1, 0)])
def test_refuses_what_is_undefined(arguments):
  with pytest.raises(errors.UserError, match="undefined"):
    pass_at_k.pass_at_k(*arguments)


def test_interval_is_near_the_normal_one():
  values = np.r_[np.ones(250), np.zeros(237)]
  error = 1.96 * values.std() / math.sqrt(len(values))

  low, high = pass_at_k.bootstrap_interval(values, seed=1)

  # 10,000 draws place a percentile within a few hundredths of the width.
  assert low == pytest.approx(values.mean() - error, abs=0.003)
  assert high == pytest.approx(values.mean() + error, abs=0.003)
  assert pass_at_k.bootstrap_interval(values, seed=1) == (low, high)


def test_interval_covers_the_truth():
  draw = np.random.default_rng(0)
  intervals = [
      pass_at_k.bootstrap_interval(draw.random(200) < 0.3, resamples=500)
      for _ in range(200)]

  covered = np.mean([low <= 0.3 <= high for low, high in intervals])

  assert 0.90 <= covered <= 0.99  # 95 % ± 3 standard errors of 200 trials


def test_table_leaves_out_what_has_too_few_samples():
  found = pass_at_k.table([(2, 1), (3, 3)], [1, 2, 5])

  assert list(found) == ["pass@1", "pass@2"]
  assert found["pass@1"]["value"] == pytest.approx((0.5 + 1) / 2)
  assert found["pass@2"] == {"value": 1.0, "interval_95": [1.0, 1.0]}
