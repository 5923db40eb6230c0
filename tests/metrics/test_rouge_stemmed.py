"""ROUGE of stems by hand: the package's own words and stems."""

import pytest

from prompt_tuning.metrics import rouge_stemmed


def test_by_hand():
  # "serving" and "serves" have one stem; words of three letters keep their s.
  # 1: 3 of 4 and 3; 2: "cheap food" alone, 1 of 3 and 2; L: 3 in order.
  found = rouge_stemmed.rouge_stemmed(
      ["Serving the cheap food"], ["serves cheap food!"])
  f1 = 2 * (3 / 4 * 1) / (3 / 4 + 1)
  assert found == {
      "rouge1_stemmed": pytest.approx(100 * f1),
      "rouge2_stemmed": pytest.approx(100 * 2 * 1 / (3 + 2)),
      "rougeL_stemmed": pytest.approx(100 * f1)}


def test_the_best_reference_and_the_mean():
  # Lin 2004, section 3: S2 and S3 against S1.
  found = rouge_stemmed.rouge_stemmed(
      [["police killed the gunman", "nothing"], "police killed the gunman"],
      ["police kill the gunman", "the gunman kill police"])
  assert found == {
      "rouge1_stemmed": pytest.approx(100),
      "rouge2_stemmed": pytest.approx(100 * (1 + 1 / 3) / 2),
      "rougeL_stemmed": pytest.approx(100 * (1 + 1 / 2) / 2)}


def test_nothing():
  assert set(rouge_stemmed.rouge_stemmed([], []).values()) == {0.0}
  assert set(rouge_stemmed.rouge_stemmed(["a"], [""]).values()) == {0.0}
