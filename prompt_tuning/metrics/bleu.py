"""BLEU, as sacrebleu computes it."""

from collections.abc import Sequence

from prompt_tuning import errors
from prompt_tuning.metrics import references

TOKENIZERS = ("13a", "char", "intl", "none", "zh")


def bleu(
    targets: Sequence[str | Sequence[str]],
    predictions: Sequence[str],
    tokenize: str = "13a",
    lowercase: bool = False,
) -> dict[str, float]:
  """Corpus BLEU (Papineni et al. 2002), with one or several references.

  N-grams up to 4, counts clipped by the references of each text, exponential
  smoothing: sacrebleu's default (Post 2018, "A Call for Clarity in Reporting
  BLEU Scores").

  Args:
    targets: N texts, or lists of texts that are all right; their numbers may
      differ.
    predictions: N texts.
    tokenize: "13a" splits as WMT's mteval-v13a does; "none" splits at white
      space.
    lowercase: whether case is the same.

  Returns:
    {"bleu": 0 to 100}.

  Raises:
    UserError: an unknown `tokenize`.
  """
  if tokenize not in TOKENIZERS:
    raise errors.UserError(
        f"bleu.tokenize is {tokenize!r}: it can be {', '.join(TOKENIZERS)}")
  return {"bleu": of_pairs(
      references.paired(targets, predictions),
      tokenize=tokenize, lowercase=lowercase)}


def of_pairs(
    pairs: Sequence[tuple[str, Sequence[str]]], **settings) -> float:
  """Corpus BLEU, 0 to 100, of predictions with their right texts.

  Args:
    pairs: N of them.
    **settings: of sacrebleu's `BLEU`.
  """
  import sacrebleu  # a third of a second, and only some tasks need it

  if not pairs:
    return 0.0
  return sacrebleu.metrics.BLEU(**settings).corpus_score(
      *references.streams(pairs)).score
