"""Vocabularies for T5X, which asks for seqio's."""

import seqio

from prompt_tuning import errors
from prompt_tuning.data import tokenizers, vocabularies


class SentencePieceVocabulary(seqio.SentencePieceVocabulary):
  """seqio's, equal to another by its pieces instead of by its file's path.

  T5X compares a model's vocabulary with its task's before it starts, and a
  local copy of T5's vocabulary is not a different one. Python asks the
  subclass first, whichever side of the comparison it is on.
  """

  def __eq__(self, other):
    try:
      return vocabularies.from_seqio(self).same_as(
          vocabularies.from_seqio(other))
    except errors.UserError:  # not a kind that can be compared
      return False

  __hash__ = seqio.SentencePieceVocabulary.__hash__


def as_seqio(vocabulary) -> seqio.Vocabulary:
  """One of `data.vocabularies` as seqio's of the same ids.

  Raises:
    UserError: for a tokenizer that seqio does not have.
  """
  if isinstance(vocabulary, seqio.Vocabulary):
    return vocabulary
  if isinstance(vocabulary, vocabularies.ByteVocabulary):
    return seqio.ByteVocabulary(extra_ids=vocabulary.extra_ids)
  if isinstance(vocabulary, vocabularies.SentencePieceVocabulary):
    return SentencePieceVocabulary(
        vocabulary.sentencepiece_model_file, vocabulary.extra_ids)
  if isinstance(vocabulary, tokenizers.TokenizersVocabulary):
    return tokenizers.as_seqio(vocabulary)
  raise errors.UserError(
      f"T5X needs a vocabulary of seqio, and VOCABULARY is {vocabulary!r}: "
      "train this model with python -m prompt_tuning.train.")


def model_file(vocabulary: type[seqio.SentencePieceVocabulary]) -> str:
  """The file that `seqio.SentencePieceVocabulary` is bound to in gin."""
  return vocabulary().sentencepiece_model_file
