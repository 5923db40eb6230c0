"""TER by hand and by sacrebleu's function."""

import pytest
import sacrebleu

from prompt_tuning import errors
from prompt_tuning.metrics import ter


def score(*arguments, **settings):
  (value,) = ter.ter(*arguments, **settings).values()
  return value


def test_by_hand():
  # A word replaced and one inserted, of 4 and 6 words on average.
  found = score([["a b c d", "a b x y z w"]], ["a x c"])
  assert found == pytest.approx(100 * 2 / 5)
  # A run of words moved is one edit.
  assert score(["a b c d e f"], ["d e f a b c"]) == pytest.approx(100 / 6)


def test_case_and_punctuation():
  assert score(["A pub ."], ["a pub ."]) == 0.0
  assert score(["A pub ."], ["a pub ."], case_sensitive=True) == (
      pytest.approx(100 / 3))
  assert score(["a pub ."], ["a pub."]) > 0
  assert ter.ter(["a pub ."], ["a pub."], tokenize="tercom") == {
      "ter_tercom": 0.0}
  # "family", "-" and "friendly" are words; accents are none.
  assert ter.ter(
      ["the café is family - friendly"], ["the cafe is family-x"],
      tokenize="webnlg") == {"ter_webnlg": pytest.approx(100 / 6)}
  with pytest.raises(errors.UserError, match="it can be none, tercom"):
    score(["a"], ["a"], tokenize="13a")


def test_sacrebleu_itself(scored):
  """With as many references each, which is what its function takes."""
  references = [(texts * 3)[:3] for texts in scored["references"]]
  expected = sacrebleu.corpus_ter(scored["outputs"], list(zip(*references)))
  assert score(references, scored["outputs"]) == pytest.approx(expected.score)
  assert 0 < expected.score < 100
  assert score([], []) == 0.0
