"""The assignment's score: by hand, and the files of its data."""

import pytest

from prompt_tuning.metrics import bleu, sentence_bleu


def score(*arguments):
  return sentence_bleu.sentence_bleu(*arguments)["sentence_bleu"]


def test_by_hand():
  # Both by n-grams up to what they can have: 2 words of 2; 3, 2 and 1 of 4, 3
  # and 2, and one of 1 smoothed to a half.
  found = score([["a b", "c"], "a b c d"], ["a b", "a b c x"])
  second = (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
  assert found == pytest.approx(100 * (1 + second) / 2)
  assert bleu.bleu([["a b", "c"], "a b c d"], ["a b", "a b c x"])[
      "bleu"] != pytest.approx(found)


def test_an_output_that_is_a_reference():
  assert score([["x", "It is a pub."], "yes"], ["It is a pub.", "yes"]) == (
      pytest.approx(100))
  assert score(["a b"], [""]) == 0.0
  assert score([], []) == 0.0
