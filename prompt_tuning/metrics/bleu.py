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
  import sacrebleu  # a third of a second, and only some tasks need it

  if tokenize not in TOKENIZERS:
    raise errors.UserError(
        f"bleu.tokenize is {tokenize!r}: it can be {', '.join(TOKENIZERS)}")
  if len(targets) != len(predictions):
    raise ValueError(
        f"{len(targets)} targets against {len(predictions)} predictions")
  if not targets:
    return {"bleu": 0.0}
  texts = [references.texts_of(target) for target in targets]
  most = max(map(len, texts))
  # sacrebleu wants the first references of all, the second ones of all, …
  streams = [[one[i] if i < len(one) else None for one in texts]
             for i in range(most)]
  score = sacrebleu.metrics.BLEU(
      tokenize=tokenize, lowercase=lowercase).corpus_score(
          list(predictions), streams)
  return {"bleu": score.score}
