"""ROUGE-L by hand, and against the E2E challenge's scorer."""

import pytest

from prompt_tuning.metrics import rouge_l


def score(*arguments):
  return rouge_l.rouge_l(*arguments)["rouge_l"]


def test_the_e2e_scorer(scored):
  assert score(scored["references"], scored["outputs"]) == pytest.approx(
      100 * scored["rouge_l"], rel=1e-12)


def test_by_hand():
  # Precision 3 of 4 from the first reference, recall 2 of 2 from the second.
  found = score([["a b x y c", "a b"]], ["a b c d"])
  p, r = 3 / 4, 1
  assert found == pytest.approx(100 * 2.44 * p * r / (r + 1.44 * p))


@pytest.mark.parametrize("left, right, length", [
    ("abcbdab", "bdcaba", 4), ("abc", "abc", 3), ("abc", "xyz", 0),
    ("", "abc", 0), ("aaa", "aa", 2)])
def test_longest_common(left, right, length):
  assert rouge_l.longest_common(left, right) == length


def test_nothing_in_common_and_nothing_at_all():
  assert score(["a b", "a", "c"], ["c", "", "c"]) == pytest.approx(100 / 3)
  assert score([], []) == 0.0
