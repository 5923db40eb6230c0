"""NIST by hand, and against the E2E challenge's scorer."""

import math

import pytest

from prompt_tuning.metrics import nist


def score(*arguments):
  return nist.nist(*arguments)["nist"]


def test_the_e2e_scorer(scored):
  assert score(scored["references"], scored["outputs"]) == pytest.approx(
      scored["nist"], rel=1e-12)


def test_by_hand():
  # Six words in the references: a twice (log2 6/2), b and c twice, d none.
  # Words: a b c match with 3 log2 3; of the pairs "a b" is in both
  # references (log2 2/2 = 0), "b c" in one of two b's (log2 2/1); no triple
  # but "a b c", which follows every time from "a b" in one of two (log2 2).
  found = score([["a b c", "A b c"]], ["a b c"])
  assert found == pytest.approx(math.log2(3))
  found = score([["a b c", "a b d"]], ["a b c"])
  # a, b: log2 6/2; c: log2 6/1. Pairs: ab log2 2/2, bc log2 2/1; abc log2 2/1.
  assert found == pytest.approx(
      (2 * math.log2(3) + math.log2(6)) / 3 + 1 / 2 + 1)


def test_brevity_by_hand():
  # Two words of three on average: a half (Doddington 2002).
  found = score([["a b", "a b c d"]], ["a b"])
  # Six words: a and b log2 6/2; ab always follows: 0.
  assert found == pytest.approx(0.5 * math.log2(3))


def test_short_and_empty_outputs():
  assert score([["a b"]], [""]) == 0.0
  assert score([], []) == 0.0
  # An output of one word has no pair, and takes none off the other's.
  long, short = ["a b c d e f"], ["g"]
  both = score([long, short], ["a b c d e f", "g"])
  assert both == pytest.approx(math.log2(7))  # each word is one of seven
