"""BLEU by hand, and against the E2E challenge's scorer."""

import math

import pytest

from prompt_tuning.metrics import bleu_mteval13a


def score(*arguments):
  return bleu_mteval13a.bleu_mteval13a(*arguments)["bleu_mteval13a"]


def test_the_e2e_scorer(scored):
  assert score(scored["references"], scored["outputs"]) == pytest.approx(
      100 * scored["bleu"], rel=1e-12)


def test_by_hand():
  # a b c x y, ab bc cx, abc and nothing of 6, 5, 4 and 3; nothing is 1e-15.
  found = score([["a b c d e f g h", "A b, c x y"]], ["a b c x z y"])
  matches = [5 / 6, 3 / 5, 1 / 4, 1e-15 / 3]
  assert found == pytest.approx(100 * math.prod(matches) ** 0.25)


def test_the_shorter_of_two_lengths_equally_near():
  assert score([["a b c d e f", "a b c d"]], ["a b c d e"]) == (
      pytest.approx(100))
  # Not by the mean, nor by the longer one.
  assert score([["a b c d e f"]], ["a b c d e"]) == pytest.approx(
      100 * math.exp(1 - 6 / 5))


def test_short_and_empty_outputs_have_no_long_ngrams():
  whole = score([["a b c d e"], ["f"]], ["a b c d e", "f"])
  assert whole == pytest.approx(100)
  assert score([["a b c d e"], ["f"]], ["a b c d e", ""]) == pytest.approx(
      100 * math.exp(1 - 6 / 5))
  assert score([], []) == 0.0
