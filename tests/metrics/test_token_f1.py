"""Token F1 by hand."""

import pytest

from prompt_tuning.metrics import token_f1


@pytest.mark.parametrize("target, prediction, expected", [
    ("returns the sum", "returns the sum", 100.0),
    ("returns the sum", "Returns a sum", 100 * 2 * 2 / 6),
    ("a a b", "a b b", 100 * 2 * 2 / 6),
    ("a", "b", 0.0),
    ("", "", 100.0),
    ("a", "", 0.0),
])
def test_pairs(target, prediction, expected):
  assert token_f1.token_f1([target], [prediction])["token_f1"] == (
      pytest.approx(expected))


def test_mean_over_pairs():
  assert token_f1.token_f1(["a", "b"], ["a", "c"]) == {"token_f1": 50.0}


def test_the_nearest_of_several_references():
  assert token_f1.token_f1([["a b", "c d"]], ["c e"]) == {"token_f1": 50.0}
