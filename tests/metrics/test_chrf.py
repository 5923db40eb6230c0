"""chrF by hand, and against sacrebleu's function."""

import pytest
import sacrebleu

from prompt_tuning.metrics import chrf


def test_by_hand():
  # Letters: abx and abc share 2 of 3; ab is 1 of 2 pairs; no triple. sacrebleu
  # leaves out orders that the texts are too short for.
  found = chrf.chrf(["ab c"], ["a bx"])
  assert found == {"chrf": pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)}


@pytest.mark.parametrize("word_order, name", [(0, "chrf"), (2, "chrf++")])
def test_sacrebleu_itself(scored, word_order, name):
  references = [(texts * 3)[:3] for texts in scored["references"]]
  expected = sacrebleu.corpus_chrf(
      scored["outputs"], list(zip(*references)), word_order=word_order)
  assert chrf.chrf(scored["references"], scored["outputs"], word_order) == {
      name: pytest.approx(expected.score)}
  assert 0 < expected.score < 100
  assert chrf.chrf([], [], word_order) == {name: 0.0}
