"""Perplexity against its definition."""

import math

import pytest

from prompt_tuning.metrics import perplexity


def test_of_a_uniform_guess_is_the_number_of_choices():
  assert perplexity.perplexity(3 * math.log(7), 3) == pytest.approx(7.0)
  assert perplexity.perplexity(0.0, 5) == 1.0


def test_beyond_the_numbers():
  assert math.isfinite(perplexity.perplexity(709.0, 1.0))
  assert perplexity.perplexity(1e6, 1.0) == math.inf
  assert math.isnan(perplexity.perplexity(math.nan, 1.0))
