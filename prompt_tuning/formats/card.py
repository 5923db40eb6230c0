"""The card of a prompt: what it was trained on, beside the prompt, as JSON.

A prompt is numbers without a name: loaded into another model of the same width
it works, badly, and nobody knows why. `sst2.json` beside `sst2.npy` names the
base model, a fingerprint of its embedding table, and the checksum of the file;
`check` refuses what does not belong together.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from typing import Any

import ml_dtypes
import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.formats import npy, write_whole

_LARGEST_CARD = 1 << 20  # bytes; a card comes from anywhere and is a page long
_ROWS = 4096  # rows of an embedding table that are on the host at a time


@dataclasses.dataclass(frozen=True)
class Card:
  """What is known of a prompt file.

  Attributes:
    base_model: name of the frozen model, as its owner calls it.
    base_fingerprint: `fingerprint` of that model's embedding table.
    shape: the prompt's `[P, H]`.
    dtype: type of the values in the file.
    sha256: checksum of the whole `.npy` file, hexadecimal.
    task: name of the task or mixture.
    metric: values on held-out data, by name.
    step: training step of the prompt.
    settings: what to set to train it again (gin macros and their values).
    versions: releases of the packages that trained it.
  """

  base_model: str
  base_fingerprint: str
  shape: tuple[int, ...]
  dtype: str
  sha256: str
  task: str
  metric: dict[str, float]
  step: int
  settings: dict[str, Any]
  versions: dict[str, str]


def card_path(prompt_path: str | os.PathLike) -> str:
  """`sst2.npy` -> `sst2.json`; names of other suffixes keep all of their dots.
  """
  path = os.fspath(prompt_path)
  return path.removesuffix(".npy").removesuffix(".safetensors") + ".json"


def fingerprint(table) -> str:
  """Names a base model by its embedding table: sha256, hexadecimal.

  Taken over the shape and the values in bfloat16, so that one model has one
  fingerprint whether it is loaded in float32 or in bfloat16.

  Args:
    table: [V, H] a numpy array, or a jax array that this process holds whole.
  """
  digest = hashlib.sha256(repr(tuple(map(int, table.shape))).encode())
  for start in range(0, table.shape[0], _ROWS):
    rows = np.asarray(table[start:start + _ROWS]).astype(ml_dtypes.bfloat16)
    digest.update(rows.view(np.uint16).astype("<u2").tobytes())
  return digest.hexdigest()


def write_card(
    prompt_path: str | os.PathLike,
    *,
    base_model: str,
    base_fingerprint: str,
    task: str,
    metric: dict[str, float],
    step: int,
    settings: dict[str, Any],
    shape: tuple[int, ...] | None = None,
) -> Card:
  """Writes the card of a prompt file that is already there.

  Shape and checksum are taken from the file itself, versions from what is
  installed. Settings that JSON cannot hold are written as text. `shape` is that
  of a prompt in a file that is no `.npy`.

  Raises:
    UserError: if the prompt cannot be read or the card cannot be written.
  """
  if shape is None:
    shape = npy.read(prompt_path).shape
  card = Card(
      base_model=base_model,
      base_fingerprint=base_fingerprint,
      shape=shape,
      dtype="float32",  # what every reader gives
      sha256=_sha256(prompt_path),
      task=task,
      metric={name: float(value) for name, value in metric.items()},
      step=int(step),
      settings=settings,
      versions=_versions(),
  )
  text = json.dumps(dataclasses.asdict(card), indent=2, default=str)
  write_whole(card_path(prompt_path), (text + "\n").encode())
  return card


def read_card(path: str | os.PathLike) -> Card:
  """Reads a card (the `.json` file) and checks that it has every field.

  Raises:
    UserError: if it is absent, not JSON, or a field is missing or of another
      kind than `Card` says. Unknown fields of later releases are let pass.
  """
  path = os.fspath(path)
  try:
    with open(path, "rb") as file:
      text = file.read(_LARGEST_CARD + 1)
  except OSError as error:
    raise UserError(
        f"cannot read the card {path!r}: {error.strerror}; check the path"
    ) from error
  if len(text) > _LARGEST_CARD:
    raise UserError(
        f"{path!r} is larger than {_LARGEST_CARD} bytes, so it is not the card "
        "of a prompt: restore the card, or remove this file")
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(
        f"the card {path!r} is not JSON: restore it from where the prompt "
        "came from, or remove it to use the prompt unchecked") from error
  return _card(content, path)


def check(
    prompt_path: str | os.PathLike, base_fingerprint: str, base_name: str
) -> Card | None:
  """Refuses a prompt that is damaged or belongs to another base model.

  Args:
    prompt_path: the `.npy` file.
    base_fingerprint: `fingerprint` of the model that is about to use it.
    base_name: that model's name, for the message.

  Returns:
    The card; None for a prompt without one, as the original's are.

  Raises:
    UserError: if the file is not the one that the card was written for, or the
      card names another base model.
  """
  path = card_path(prompt_path)
  if not os.path.lexists(path):
    return None
  card = read_card(path)
  found = _sha256(prompt_path)
  if found != card.sha256:
    raise UserError(
        f"{os.fspath(prompt_path)!r} is not the file that its card {path!r} "
        f"describes (sha256 {found[:12]}..., on the card "
        f"{card.sha256[:12]}...): it was damaged or replaced, copy both "
        "again from their source, or remove the card if the new prompt is "
        "meant")
  if card.base_fingerprint != base_fingerprint:
    raise UserError(
        f"{os.fspath(prompt_path)!r} was trained on the base model "
        f"{card.base_model!r} (fingerprint {card.base_fingerprint[:12]}...), "
        f"and this is {base_name!r} (fingerprint {base_fingerprint[:12]}...): "
        "load the base model that the prompt was trained on, or train a prompt "
        "for this one")
  return card


# What JSON must hold for each field of `Card`.
_KINDS = {
    "base_model": str, "base_fingerprint": str, "shape": list, "dtype": str,
    "sha256": str, "task": str, "metric": dict, "step": int, "settings": dict,
    "versions": dict,
}


def _card(content: Any, path: str) -> Card:
  """A card from parsed JSON, every field of the kind that it should be."""
  if not isinstance(content, dict):
    raise UserError(
        f"the card {path!r} is not a JSON object: restore it, or remove it to "
        "use the prompt unchecked")
  for name, kind in _KINDS.items():
    if not isinstance(content.get(name), kind):
      raise UserError(
          f"the card {path!r} has no {name!r} of kind {kind.__name__}: restore "
          "it, or remove it to use the prompt unchecked")
  known = {name: content[name] for name in _KINDS}
  return Card(**known | {"shape": tuple(content["shape"])})


def _sha256(path: str | os.PathLike) -> str:
  """Checksum of a file, which need not fit into memory."""
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise UserError(
        f"cannot read {os.fspath(path)!r}: {error.strerror}; check the path"
    ) from error


def _versions() -> dict[str, str]:
  """Releases of what a prompt's numbers depend on."""
  versions = {"python": platform.python_version()}
  for package in ("prompt-tuning", "jax", "jaxlib", "flax", "optax", "numpy"):
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue  # A checkout on the path has no metadata.
  return versions
