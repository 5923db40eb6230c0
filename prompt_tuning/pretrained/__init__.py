"""The embedded default: a small T5 1.1 that comes with the package.

`t5_1_1_docstrings/` is a Hugging Face T5 directory (config, bf16 safetensors,
SentencePiece model) with its model card; `scripts/pretrain_default.py` makes
it anew.
"""

import functools
import pathlib

from prompt_tuning.data import vocabularies

DIRECTORY = pathlib.Path(__file__).parent / "t5_1_1_docstrings"
EXTRA_IDS = 100


def path() -> str:
  """The folder of the embedded default, wherever the package is installed."""
  return str(DIRECTORY)


def vocabulary_path() -> str:
  """Its SentencePiece model."""
  return str(DIRECTORY / "spiece.model")


@functools.cache
def vocabulary() -> vocabularies.SentencePieceVocabulary:
  """The vocabulary of the embedded default, 4,096 ids."""
  return vocabularies.SentencePieceVocabulary(
      vocabulary_path(), EXTRA_IDS)
