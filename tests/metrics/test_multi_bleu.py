"""BLEU of WebNLG's words by hand, and against Moses' multi-bleu.perl -lc."""

import math

import pytest

from prompt_tuning.metrics import multi_bleu


def score(*arguments, **settings):
  return multi_bleu.multi_bleu(*arguments, **settings)["multi_bleu"]


def test_multi_bleu_perl(scored):
  found = score(scored["references"], scored["outputs"])
  assert found == pytest.approx(scored["multi_bleu"], abs=0.005)  # as printed


def test_by_hand():
  # Accents and case do not count; the hyphen is a word. With 8 words against
  # 9: 7 of 8, 6 of 7, 5 of 6 and 4 of 5 n-grams.
  found = score(["Zoë lives-in a house by the"], ["zoe lives-in a house by X"])
  assert found == pytest.approx(
      100 * (7 / 8 * 6 / 7 * 5 / 6 * 4 / 5) ** 0.25)


def test_the_first_references_count():
  targets = [["x", "x", "x", "a b c d e"]]
  assert score(targets, ["a b c d e"]) == 0.0
  assert score(targets, ["a b c d e"], most_references=None) == (
      pytest.approx(100))


def test_brevity_and_no_smoothing():
  assert score(["a b c d e f"], ["a b c d e"]) == pytest.approx(
      100 * math.exp(1 - 6 / 5))
  assert score(["a b c d e f"], ["a b c x"]) == 0.0
  assert score([], []) == 0.0
