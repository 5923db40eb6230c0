"""Binary F1 by hand."""

import pytest

from prompt_tuning.metrics import f1


@pytest.mark.parametrize("targets, predictions, expected", [
    ([1, 1, 0, 0], [1, 0, 1, 0], 50.0),
    ([1, 1, 0], [1, 1, 0], 100.0),
    ([0, 0], [0, 0], 0.0),  # no class 1 anywhere
    ([1, 0], [-1, -1], 0.0),  # invalid ones are wrong on both sides
    ([1, 1, 0], [1, -1, 0], 100 * 2 / 3),
    ([1, 1, 0], [1, 1, 7], 80.0),
    ([], [], 0.0),
])
def test_pairs(targets, predictions, expected):
  assert f1.f1(targets, predictions) == {"f1": pytest.approx(expected)}


def test_of_texts():
  """The first case above, with words for classes."""
  found = f1.f1_of_text(
      [" Yes", " Yes", " No", " No"], ["Yes", " No", " Yes", " Maybe"], " Yes")
  assert found == {"f1": pytest.approx(50.0)}
