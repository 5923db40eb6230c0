"""Pretraining on C4's documents: BART's noise, and targets drawn by chance.

A document is cut into pieces as long as the inputs may be. The draws depend on
a piece's ids alone, so an example is the same in every run. C4 has 365 million
documents; training reads the first million.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import hashlib
from typing import Any

import numpy as np

from prompt_tuning.data import pretraining, tasks, text_tasks, texts, tfds

# Share of ids that are deleted or hidden, and the mean run of hidden ones, as
# in BART (Lewis et al. 2020) and T5.
_NOISE_DENSITY = 0.15
# Ids of a document that are read at most, as in T5.
_LONGEST = 65536

_DOCUMENTS = tfds.dataset(
    "c4/en:2.2.0",
    {"train": "train[:1000000]", "validation": "validation"})

_Made = Iterator[dict[str, list[int]]]
_Ids = Mapping[str, Sequence[int]]


def document(row: texts.Row) -> texts.Example:
  """A document is the target; inputs are made of its ids."""
  return {"inputs": "", "targets": row["text"]}


def pieces(
    ids: Sequence[int], length: int
) -> Iterator[tuple[np.ndarray, np.random.Generator]]:
  """A document's ids in pieces of at most `length`, each with its draws."""
  draw = _generator(ids)
  if len(ids) > _LONGEST:
    start = int(draw.integers((len(ids) - 1) // _LONGEST + 1)) * _LONGEST
    ids = ids[start:start + _LONGEST]
  for start in range(0, len(ids), length):
    piece = np.array(ids[start:start + length], np.int32)
    yield piece, _generator(piece)


def _generator(ids: Sequence[int]) -> np.random.Generator:
  digest = hashlib.sha256(np.asarray(ids, np.int32).tobytes()).digest()
  return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def deletion(
    ids: _Ids, vocabularies: Mapping[str, Any], lengths: Mapping[str, int],
) -> _Made:
  """Inputs lack ids that the targets have."""
  del vocabularies
  for piece, draw in pieces(ids["targets"], lengths["inputs"] - 1):
    kept = draw.random(len(piece)) >= _NOISE_DENSITY
    yield {"inputs": piece[kept].tolist(), "targets": piece.tolist()}


def infilling(
    ids: _Ids, vocabularies: Mapping[str, Any], lengths: Mapping[str, int],
) -> _Made:
  """Sentinels, each another, stand for runs of ids; targets are whole."""
  size = vocabularies["inputs"].vocab_size
  for piece, draw in pieces(ids["targets"], lengths["inputs"] - 1):
    if len(piece) < 2:
      continue  # nothing would be left
    inputs, _ = pretraining.span_corrupted(piece, draw, size)
    yield {"inputs": inputs, "targets": piece.tolist()}


def chance(
    ids: _Ids, vocabularies: Mapping[str, Any], lengths: Mapping[str, int],
    words: Sequence[str],
) -> _Made:
  """Inputs are the beginning of a piece; the target is one of some words.

  The beginning's length is drawn from all, as in T5's prefix language model.
  """
  encoded = [vocabularies["targets"].encode(word) for word in words]
  for piece, draw in pieces(ids["targets"], lengths["inputs"] - 1):
    if len(piece) < 2:
      continue
    end = int(draw.integers(1, len(piece)))
    yield {"inputs": piece[:end].tolist(),
           "targets": encoded[int(draw.integers(len(encoded)))]}


_TOKEN_FNS = {
    "c4_v220_bart_token_deletion": deletion,
    "c4_v220_bart_text_infilling": infilling,
    "c4_v220_random_positive_negative_targets": functools.partial(
        chance, words=("positive", "negative")),
}

TASKS: dict[str, tasks.Factory] = {
    name: functools.partial(
        text_tasks.make, name, _DOCUMENTS, (texts.each(document),),
        token_fn=token_fn)
    for name, token_fn in _TOKEN_FNS.items()}

MIXTURES = {}
