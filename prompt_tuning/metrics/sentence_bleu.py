"""BLEU of each text, averaged."""

from collections.abc import Sequence

from prompt_tuning.metrics import references


def sentence_bleu(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean of sentence BLEU over 13a words, which corpus BLEU is not.

  sacrebleu's `BLEU(effective_order=True).sentence_score`: a text of fewer than
  4 words is judged by the n-grams that it can have. The score of Simon Fraser
  University's assignment on prefix tuning.

  Args:
    targets: N texts, or lists of texts that are all right.
    predictions: N texts.

  Returns:
    {"sentence_bleu": 0 to 100}.
  """
  import sacrebleu  # a third of a second, and only some tasks need it

  score = sacrebleu.metrics.BLEU(effective_order=True).sentence_score
  scores = [score(prediction, texts).score
            for prediction, texts in references.paired(targets, predictions)]
  return {"sentence_bleu": sum(scores) / max(len(scores), 1)}
