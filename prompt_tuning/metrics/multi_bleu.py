"""BLEU as the WebNLG and DART evaluations have it."""

from collections.abc import Sequence

from prompt_tuning.metrics import bleu, references, webnlg_tokens


def multi_bleu(
    targets: Sequence[str | Sequence[str]],
    predictions: Sequence[str],
    most_references: int | None = 3,
) -> dict[str, float]:
  """Corpus BLEU-4 of `webnlg_tokens`, not smoothed: Moses' multi-bleu.perl -lc.

  Of references equally near in length the shorter one counts for brevity. A
  missing reference does not count; in the scripts' files it is a blank line,
  which that program takes for a reference without words, and nearest for
  outputs of a few words.

  Args:
    targets: N texts, or lists of texts that are all right.
    predictions: N texts.
    most_references: how many of a target's first ones count; None: all.
      WebNLG's and DART's published figures have 3.

  Returns:
    {"multi_bleu": 0 to 100; 0 without a match of 4 words}.
  """
  pairs = [
      (_spaced(prediction), [_spaced(text) for text in texts[:most_references]])
      for prediction, texts in references.paired(targets, predictions)]
  return {"multi_bleu": bleu.of_pairs(
      pairs, tokenize="none", smooth_method="none", force=True)}


def _spaced(text: str) -> str:
  return " ".join(webnlg_tokens.tokens(text))
