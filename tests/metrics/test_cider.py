"""CIDEr by hand, and against the E2E challenge's scorer."""

import math

import pytest

from prompt_tuning.metrics import cider


def score(*arguments):
  return cider.cider(*arguments)["cider"]


def test_the_e2e_scorer(scored):
  assert score(scored["references"], scored["outputs"]) == pytest.approx(
      scored["cider"], rel=1e-12)


def test_by_hand():
  # Two targets; "a" is in both and weighs nothing, b, c and d weigh log 2.
  # First text, words: a b against a b and a c: cosine 1 and 0; pairs: ab is
  # in one target of two, and so is ac: 1 and 0. Longer ones: none.
  # Second text: d d against a d, words: clipped at one d, so that the product
  # is 1 * 1 of norms 2 and 1: 1/2; no pair matches.
  found = score([["a b", "a c"], ["a d"]], ["a b", "d d"])
  assert found == pytest.approx(
      10 * ((1 / 2 + 1 / 2) / 4 + (1 / 2) / 4) / 2)


def test_lengths_by_hand():
  # The one word more costs a Gaussian of sigma 6; its weight, log 2, counts.
  found = score([["b"], ["c"]], ["b b", "c"])
  # In pairs of words the output has 1 and the reference 0.
  first = (1 / 2) * math.exp(-1 / 72) / 4
  assert found == pytest.approx(10 * (first + 1 / 4) / 2)


def test_nothing():
  assert score([], []) == 0.0
  assert score(["a"], ["a"]) == 0.0  # a single target tells nothing
  assert score(["a", "b"], ["", "b"]) == pytest.approx(10 / 4 / 2)
