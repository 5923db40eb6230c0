"""BLEU as the E2E challenge's scorer has it."""

from collections.abc import Sequence

from prompt_tuning.metrics import bleu, references

# What an order of n-grams without a match counts, of one: next to nothing.
_FLOOR = 1e-15


def bleu_mteval13a(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Corpus BLEU-4 of lower-cased mteval-v13a words, all but not smoothed.

  The figures of `measure_scores.py -p` (Dušek, Novikova and Rieser 2020, "The
  E2E NLG Challenge"): the reference nearest in length counts for brevity, the
  shorter of two. Where outputs are shorter than n words they have no n-grams,
  as in mteval-v13a itself; that program takes their negative number.

  Args:
    targets: N texts, or lists of texts that are all right.
    predictions: N texts.

  Returns:
    {"bleu_mteval13a": 0 to 100}; the scorer prints 0 to 1.
  """
  return {"bleu_mteval13a": bleu.of_pairs(
      references.paired(targets, predictions), tokenize="13a", lowercase=True,
      smooth_method="floor", smooth_value=_FLOOR,
      force=True)}  # E2E's texts have spaces around signs; it warns of that
