"""METEOR: words, stems and synonyms that match, in order."""

from collections.abc import Sequence
import functools
import os
import types

from prompt_tuning.metrics import penn_tokens, references, wordnet


def meteor(
    targets: Sequence[str | Sequence[str]],
    predictions: Sequence[str],
    wordnet_folder: str | os.PathLike | None = None,
) -> dict[str, float]:
  """Mean METEOR of texts (Lavie and Agarwal 2007) by nltk.

  Not METEOR 1.5, the Java program of the E2E and WebNLG scorers: that one has
  paraphrases, function words and weights of its own, and scores a corpus as
  one. Compare figures of one name only.

  Words are those of `penn_tokens`. A match is of words, then of Porter's
  stems, then of synonyms; nltk looks these up by stem, so that "famous"
  (famou) has none. The best reference of each text counts.

  Args:
    targets: N texts, or lists of texts that are all right.
    predictions: N texts.
    wordnet_folder: a WordNet database (see `wordnet`); None: nltk's, if its
      data are on this machine. Nothing is downloaded.

  Returns:
    {"meteor_wordnet": percent, 0 to 100}, or, without a WordNet,
    {"meteor_exact_stem": percent}.

  Raises:
    UserError: the folder is no WordNet database.
  """
  from nltk.translate import meteor_score  # half a second

  synonyms = _found_wordnet() if wordnet_folder is None else _opened(
      os.fspath(wordnet_folder))
  stems = _stems()
  scores = [
      meteor_score.meteor_score(
          [penn_tokens.tokens(text) for text in texts],
          penn_tokens.tokens(prediction), stemmer=stems,
          wordnet=synonyms or _NO_SYNONYMS)
      for prediction, texts in references.paired(targets, predictions)]
  name = "meteor_wordnet" if synonyms else "meteor_exact_stem"
  return {name: 100.0 * sum(scores) / max(len(scores), 1)}


_NO_SYNONYMS = types.SimpleNamespace(synsets=lambda word: [])

_opened = functools.cache(wordnet.WordNet)


def _found_wordnet():
  """nltk's own WordNet, or None if its data are not on this machine."""
  import nltk.corpus

  try:
    nltk.corpus.wordnet.ensure_loaded()
  except LookupError:
    return None
  return nltk.corpus.wordnet


@functools.cache
def _stems():
  import nltk.stem

  return types.SimpleNamespace(
      stem=functools.cache(nltk.stem.PorterStemmer().stem))
