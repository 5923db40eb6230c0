"""Prompts that are made per example, as one safetensors file.

Tensors have the names of the parameters under the prompt's module:
`shared/prompt`, `row/hidden/kernel`, …; the file's metadata say which method
they are of, with which options and whose encodings, under `prompt_tuning`. The
base model is on the card beside it (`card`).
"""

from collections.abc import Mapping
import dataclasses
import json
import os
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from prompt_tuning import checkpoints, errors, formats

SUFFIX = ".safetensors"
SHARED = "shared/prompt"

_KEY = "prompt_tuning"

# What sets each option, for messages.
_MACROS = {
    "length": "PROMPT_LENGTH", "rank": "LOPA_RANK", "fusion": "FUSION",
    "freeze_encoder": "FREEZE_ENCODER"}


@dataclasses.dataclass(frozen=True)
class InstancePrompt:
  """What is in a file.

  Attributes:
    options: `method`, `length`, `encoder` (the encoder's fingerprint, "" for
      the model's own embedded input) and the method's own.
    arrays: float32, by name.
  """

  options: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray]


def is_file(path: str | os.PathLike) -> bool:
  """Whether a path is called as such a file is."""
  return os.fspath(path).endswith(SUFFIX)


def options_of(prompt: Any, encoder: Any) -> dict[str, Any]:
  """What a prompt's module and the model's encoder put into a file."""
  return {**prompt.options, "encoder": encoder.fingerprint if encoder else ""}


def write(path: str | os.PathLike, prompt: InstancePrompt) -> None:
  """Writes a file, whole or not at all.

  Raises:
    UserError: if it cannot be written.
  """
  arrays = {name: np.ascontiguousarray(array, np.float32)
            for name, array in prompt.arrays.items()}
  formats.write_whole(path, safetensors.numpy.save(
      arrays, {_KEY: json.dumps(dict(prompt.options), sort_keys=True)}))


def read(path: str | os.PathLike) -> InstancePrompt:
  """Reads a file.

  Raises:
    UserError: if it is absent, damaged, of another kind, or has NaN or infinite
      values.
  """
  path = os.fspath(path)
  with (checkpoints.reading(path, safetensors.SafetensorError),
        safetensors.safe_open(path, framework="numpy") as opened):
    metadata = opened.metadata() or {}
    arrays = {name: opened.get_tensor(name) for name in opened.keys()}
  try:
    options = json.loads(metadata.get(_KEY, ""))
  except ValueError:
    options = None
  if not isinstance(options, dict) or not {"method", "encoder"} <= set(options):
    raise errors.UserError(
        f"{path} is no prompt of LOPA or IDPG (its metadata have no "
        f"{_KEY!r}): name the prompt{SUFFIX} of a run.")
  for name, array in arrays.items():
    if array.dtype != np.float32 or not np.isfinite(array).all():
      raise errors.UserError(
          f"{path}: {name} is not float32 or has NaN or infinite values: copy "
          "the file again, or take an earlier one.")
  return InstancePrompt(options, arrays)


def shared_prompt(path: str | os.PathLike) -> np.ndarray:
  """The shared prompt [P, H] in a file, which another run can start from.

  Raises:
    UserError: if there is none, or see `read`.
  """
  found = read(path)
  if SHARED not in found.arrays:
    raise errors.UserError(
        f"{os.fspath(path)} is of {found.options['method']}, which has no "
        "prompt that all examples share: evaluate it as PROMPT_FILE, behind "
        f"prompts/{found.options['method']}.gin.")
  return found.arrays[SHARED]


def check_options(
    path: str | os.PathLike, found: InstancePrompt, wanted: Mapping[str, Any]
) -> None:
  """Refuses a file of another method, encoder or option.

  Args:
    path: the file's.
    found: what is in it.
    wanted: the model's options, from `options_of`.

  Raises:
    UserError: naming the first difference and what sets it.
  """
  path, mine = os.fspath(path), found.options
  if mine["method"] != wanted["method"]:
    raise errors.UserError(
        f"{path} is of {mine['method']}, and the gin files give "
        f"{wanted['method']}: take prompts/{mine['method']}.gin.")
  if mine["encoder"] != wanted["encoder"]:
    raise errors.UserError(
        f"{path} was trained on encodings of {_encoder(mine['encoder'])}, and "
        f"the gin files give {_encoder(wanted['encoder'])}: set ENCODER to the "
        "one that it was trained with.")
  for name in sorted(set(mine) | set(wanted)):
    if mine.get(name) != wanted.get(name):
      raise errors.UserError(
          f"{path} was trained with {name} {mine.get(name)!r}, and the gin "
          f"files give {wanted.get(name)!r}: set "
          f"{_MACROS.get(name, name)} = {mine.get(name)!r}.")


def check_shapes(
    path: str | os.PathLike, found: InstancePrompt,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
  """Refuses a file whose arrays are not those of the model's prompt.

  Args:
    path: the file's.
    found: what is in it.
    shapes: of the parameters under the model's prompt, by name.

  Raises:
    UserError: naming the first difference and what sets it.
  """
  for name in sorted(set(found.arrays) | set(shapes)):
    has = found.arrays[name].shape if name in found.arrays else None
    if has != shapes.get(name):
      raise errors.UserError(
          f"{os.fspath(path)} has {name} of shape {has}, and the model of the "
          f"gin files {shapes.get(name)}: set HEAD_WIDTH to what it was "
          "trained with, and load the base that it was trained on.")


def _encoder(fingerprint: str) -> str:
  return (f"the encoder {fingerprint[:12]}" if fingerprint
          else "the model's own embedded input")
