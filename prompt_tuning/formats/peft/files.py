"""An adapter's directory: read with suspicion, written whole."""

from collections.abc import Mapping
import contextlib
import dataclasses
import os
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from prompt_tuning import checkpoints, errors, formats
from prompt_tuning.formats.peft import configs

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"


@dataclasses.dataclass(frozen=True)
class Adapter:
  """An adapter in PEFT's terms.

  Attributes:
    type: PEFT's name of the method, a key of `configs.FIELDS`.
    config: every field of `adapter_config.json`.
    tensors: by PEFT's names, in the file's dtype.
    path: where it was read from, for messages.
  """

  type: str
  config: Mapping[str, Any]
  tensors: Mapping[str, np.ndarray]
  path: str = "The adapter"


def is_adapter(path: str | os.PathLike) -> bool:
  """Whether the folder `path` looks like an adapter."""
  return os.path.isfile(os.path.join(path, CONFIG))


def load(path: str | os.PathLike, trainable: bool = False) -> Adapter:
  """Reads an adapter.

  Args:
    path: the folder with `adapter_config.json`.
    trainable: whether it is to go on training.

  Returns:
    The adapter; whether it fits a model is asked by `to_params`.

  Raises:
    UserError: if it is missing, damaged, of a type or with settings that are
      not supported, or `trainable` and its encoder was not saved.
  """
  path = os.fspath(path)
  if not is_adapter(path):
    raise errors.UserError(
        f"{path} is no PEFT adapter: it has no {CONFIG}; give the folder that "
        "has (an adapter of another name than 'default' is in a subfolder).")
  config = configs.read(os.path.join(path, CONFIG))
  if trainable:
    _refuse_folded(config, path)
  adapter = Adapter(
      config["peft_type"], config, _read_tensors(path), path)
  _check_tensors(adapter)
  return adapter


def save(adapter: Adapter, path: str | os.PathLike) -> None:
  """Writes an adapter that PEFT loads, byte for byte as PEFT writes it.

  Args:
    adapter: its tensors are written in their dtype.
    path: the folder; made if absent.

  Raises:
    UserError: if it cannot be written, or a value is NaN or infinite.
  """
  path = os.fspath(path)
  _check_tensors(dataclasses.replace(adapter, path=path))
  config = dict(adapter.config) | {"inference_mode": True}
  content = safetensors.numpy.save(
      {name: np.ascontiguousarray(x) for name, x in adapter.tensors.items()},
      metadata={"format": "pt"})
  # A new folder appears whole. In one that is there, the configuration comes
  # last: without it a folder is no adapter yet.
  with (contextlib.nullcontext(path) if os.path.isdir(path)
        else formats.whole_folder(path)) as folder:
    formats.write_whole(os.path.join(folder, TENSORS), content)
    formats.write_whole(
        os.path.join(folder, CONFIG), configs.to_json(config))


def _read_tensors(path: str) -> dict[str, np.ndarray]:
  file = os.path.join(path, TENSORS)
  if not os.path.isfile(file) and os.path.exists(os.path.join(path, _PICKLE)):
    raise errors.UserError(
        f"{path} has its weights only in {_PICKLE}, a pickle, which can run "
        "code and is never read: load it once with PEFT where you trust it, "
        "and save it again (save_pretrained writes safetensors).")
  with (checkpoints.reading(file, safetensors.SafetensorError),
        safetensors.safe_open(file, framework="numpy") as opened):
    return {name: opened.get_tensor(name) for name in opened.keys()}


def _refuse_folded(config: dict, path: str) -> None:
  """Refuses to train on what was saved without its encoder."""
  if config.get("prefix_projection"):
    raise errors.UserError(
        f"{path} is a prefix made by a projection, which PEFT does not save, "
        "so it cannot go on training: use it as it is, or start a new prefix "
        "without a projection from its table.")
  if config["peft_type"] == "P_TUNING":
    raise errors.UserError(
        f"{path} is a prompt made by a P-tuning encoder, which PEFT does not "
        "save, so it cannot go on training: use it as it is, or start a new "
        "prompt from its table.")


def _check_tensors(adapter: Adapter) -> None:
  """Refuses tensors that are no numbers, and names of other types."""
  if not adapter.tensors:
    raise errors.UserError(f"{adapter.path} holds no tensors.")
  for name, tensor in adapter.tensors.items():
    if not np.issubdtype(tensor.dtype, np.floating) and (
        tensor.dtype.name != "bfloat16"):
      raise errors.UserError(
          f"{adapter.path} holds {name} as {tensor.dtype}: save the adapter "
          "in float32 or bfloat16.")
    if not np.isfinite(tensor.astype(np.float32)).all():
      raise errors.UserError(
          f"{adapter.path} holds NaN or infinite values in {name}: the "
          "training that made them diverged, take an earlier one.")
