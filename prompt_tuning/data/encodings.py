"""Encodings of examples by a frozen network, made once and kept on disk.

An instance encoder is any object with

    width        E
    fingerprint  of its weights and of how it makes encodings of texts
    encode(texts) -> [N, E] float32

What is encoded is an example's `encoder_text` if its task gives one, its
`inputs` text otherwise, whole, however the model's own inputs are cut.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, Protocol
import warnings

import numpy as np

from prompt_tuning import errors, formats
from prompt_tuning.data import token_ids
from prompt_tuning.formats import npy

_FORMAT = 1  # changed whenever the same examples would be stored otherwise


class Encoder(Protocol):
  """What makes encodings; see the module."""

  width: int
  fingerprint: str

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """N texts -> [N, E] float32."""


def attach(
    examples: token_ids.Examples, encoder: Encoder,
    cache_dir: str | os.PathLike,
) -> token_ids.Examples:
  """The examples with their encodings, from the cache if they are there.

  Args:
    examples: N of them.
    encoder: E wide.
    cache_dir: a folder; made if absent.

  Raises:
    UserError: if an example has ids and no text, or the encoder gives what is
      no encoding.
  """
  key = hashlib.sha256(json.dumps(
      [_FORMAT, examples.fingerprint, encoder.fingerprint]).encode())
  path = pathlib.Path(cache_dir, f"encodings-{key.hexdigest()[:16]}.npy")
  found = _cached(path, (len(examples), encoder.width))
  if found is None:
    found = _encoded(examples, encoder)
    path.parent.mkdir(parents=True, exist_ok=True)
    npy.write(path, found)
    formats.write_whole(
        path.with_suffix(".sha256"), token_ids.sha256(path).encode())
  return dataclasses.replace(examples, encodings=found)


def attach_ids(
    examples: token_ids.Examples, encoder: Any
) -> token_ids.Examples:
  """The examples with ids of their texts, for an encoder that is trained.

  Args:
    examples: N of them.
    encoder: has `tokenize`, see `instance_encoders.InstanceEncoder`.

  Raises:
    UserError: if an example has ids and no text.
  """
  return dataclasses.replace(
      examples, encoder_ids=encoder.tokenize(_texts(examples)))


def text_of(example: dict[str, Any], place: str) -> str:
  """What is encoded of an example, as its task gave it.

  Raises:
    UserError: if it has no text.
  """
  for name in ("encoder_text", "inputs_pretokenized", "inputs"):
    text = example.get(name)
    if isinstance(text, str):
      return text
    if name == "encoder_text" and text is not None:
      break
  raise errors.UserError(
      f"{place} has no text for the encoder: its task gives ids; add the text "
      "to its examples as 'encoder_text'")


def _texts(examples: token_ids.Examples) -> list[str]:
  return [
      text_of(examples.original(i),
              f"example {i + 1} of {examples.task_name}/{examples.split}")
      for i in range(len(examples))]


def _encoded(examples, encoder) -> np.ndarray:
  texts = _texts(examples)
  # Tables of E2E come with nine texts each: what is read is encoded once.
  places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
  found = np.asarray(encoder.encode(list(places)), np.float32)
  wanted = (len(places), encoder.width)
  if found.shape != wanted or not np.isfinite(found).all():
    raise errors.UserError(
        f"the encoder gave an array of shape {found.shape} for the "
        f"{len(places)} texts of {examples.task_name}, which should have "
        f"shape {wanted} and finite numbers: check its weights")
  return found[[places[text] for text in texts]]


def _cached(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray | None:
  """What the cache holds; None if it is not there or not whole."""
  if not path.is_file():
    return None
  try:
    if path.with_suffix(".sha256").read_text() != token_ids.sha256(path):
      raise ValueError("another sha256")
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if found.shape != shape or found.dtype != np.float32:
      raise ValueError(f"shape {found.shape}")
  except (OSError, ValueError) as error:
    warnings.warn(
        f"the encodings in {path} are damaged ({error}); they are made again",
        stacklevel=3)
    return None
  return np.asarray(found)
