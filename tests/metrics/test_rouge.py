"""ROUGE against rouge_score 0.1.2's figures, and by hand."""

import pytest

from prompt_tuning.metrics import rouge


@pytest.mark.parametrize("target, prediction, expected", [
    ("The cat sat on the mat . It was a fine, fine day . The end",
     "On the mat sat a cat . The day was fine . End of it",
     (88.888889, 16.0, 66.666667)),
    # Lin 2004, section 3, where S1 is the reference and S3 the summary.
    ("police killed the gunman", "the gunman police killed",
     (100.0, 66.666667, 50.0)),
    # Lines are sentences of rougeLsum.
    ("a b c d\ne f g", "e g b\na d c", (92.307692, 0.0, 76.923077)),
    ("a", "", (0.0, 0.0, 0.0)),
])
def test_pairs(target, prediction, expected):
  found = rouge.rouge([target], [prediction])
  assert tuple(found) == ("rouge1", "rouge2", "rougeLsum")
  assert tuple(found.values()) == pytest.approx(expected, abs=1e-5)


def test_mean_over_summaries():
  assert rouge.rouge(["a b", "a b"], ["a b", "c"]) == {
      "rouge1": 50.0, "rouge2": 50.0, "rougeLsum": 50.0}


def test_letters_and_digits_are_words():
  assert rouge.rouge(["It's 5%!"], ["it s 5"])["rouge1"] == 100.0
