"""SQuAD's metrics by hand."""

import pytest

from prompt_tuning.metrics import squad


@pytest.mark.parametrize("answers, prediction, exact, overlap", [
    (["The Cat."], "cat", 100.0, 100.0),
    (["dog", "a cat"], "an cat!", 100.0, 100.0),
    (["black cat", "dog"], "the cat sat", 0.0, 50.0),
    (["dog"], "cat", 0.0, 0.0),
    (["5 % "], "5%", 100.0, 100.0),
    (["the"], "a", 100.0, 0.0),  # nothing is left: equal, without a word
])
def test_answers(answers, prediction, exact, overlap):
  assert squad.squad([answers], [prediction]) == {
      "em": exact, "f1": pytest.approx(overlap)}


def test_mean_over_questions():
  assert squad.squad([["a b"], ["b"]], ["b", "c"]) == {"em": 50.0, "f1": 50.0}
