"""BLEU by hand, and against sacrebleu's own command line of references."""

import math

import pytest
import sacrebleu

from prompt_tuning import errors
from prompt_tuning.metrics import bleu

OUTPUTS = ["There is a cheap pub near the river .", "The Mill serves tea, ok?",
           "nothing at all is right here"]
REFERENCES = [
    ["A cheap pub is near the river .", "There is a pub near the river ."],
    ["The Mill serves some tea , okay ?"],
    ["it is wrong", "all is wrong at all", "nothing here is right"]]


def test_one_reference_by_hand():
  # n-grams: 4 of 5, 3 of 4, 2 of 3, 1 of 2 match; both have 5 words.
  expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
  assert bleu.bleu(["a b c d e"], ["a b c d f"]) == {
      "bleu": pytest.approx(expected)}


def test_several_references_by_hand():
  # Each n-gram is counted in the reference that has it: 1-grams 5 of 5,
  # 2-grams (ab bc cd de) 4 of 4, 3-grams bcd is in neither, 4-grams none:
  # smoothed to 1/2 and 1/4 of one. The nearest length, 5, costs nothing.
  found = bleu.bleu([["a b c x y", "z c d e"]], ["a b c d e"])
  # 3-grams: abc, cde match, bcd not; 4-grams: abcd, bcde not -> 1/2 of 1.
  expected = 100 * (1 * 1 * 2 / 3 * (1 / 2) / 2) ** 0.25
  assert found == {"bleu": pytest.approx(expected)}


def test_brevity_by_hand():
  found = bleu.bleu(["a b c d e f"], ["a b c d e"])["bleu"]
  assert found == pytest.approx(100 * math.exp(1 - 6 / 5))


@pytest.mark.parametrize("tokenize", ["13a", "none", "intl"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_sacrebleu_itself(tokenize, lowercase):
  """With as many references each, some twice, which changes no count."""
  padded = [(texts * 3)[:3] for texts in REFERENCES]
  expected = sacrebleu.corpus_bleu(
      OUTPUTS, list(zip(*padded)), tokenize=tokenize, lowercase=lowercase)
  found = bleu.bleu(REFERENCES, OUTPUTS, tokenize, lowercase)
  assert found == {"bleu": pytest.approx(expected.score)}
  assert 0 < expected.score < 100


def test_13a_splits_punctuation_off():
  assert bleu.bleu(["a b c d."], ["a b c d ."])["bleu"] == pytest.approx(100)
  assert bleu.bleu(["a b c d."], ["a b c d ."], "none")["bleu"] < 100


def test_nothing_and_mistakes():
  assert bleu.bleu([], []) == {"bleu": 0.0}
  with pytest.raises(ValueError, match="1 targets against 2"):
    bleu.bleu(["a"], ["a", "b"])
  with pytest.raises(errors.UserError, match="it can be 13a"):
    bleu.bleu(["a"], ["a"], "14a")
