"""A prompt in whatever format it is stored.

The formats are told apart by what is there: a `.npy` file of any name, a
`.safetensors` file of prompts per example (the one that they share is read),
the folder of a PEFT adapter, and a T5X checkpoint `checkpoint_N` or, inside it,
one variable's folder `target.encoder.prompt.prompt.prompt`.
"""

from collections.abc import Sequence
import os

import flax
import numpy as np

from prompt_tuning import checkpoints, errors
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.checkpoints import t5x
from prompt_tuning.formats import instance, npy, peft

FORMATS = {
    "npy": "a .npy file", "instance": "a file of prompts per example",
    "peft": "a PEFT adapter", "t5x": "a T5X checkpoint"}

# PEFT's types that are one table once they are saved.
_ONE_TABLE = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


def kind(path: str | os.PathLike) -> str:
  """Which of `FORMATS` a path is.

  Raises:
    UserError: if it is none, or not there.
  """
  if os.path.isfile(path):
    return "instance" if instance.is_file(path) else "npy"
  if not os.path.isdir(path):
    raise errors.UserError(f"There is no {path}: check the path.")
  if peft.is_adapter(path):
    return "peft"
  if _is_variable(path) or t5x.is_t5x(path):
    return "t5x"
  raise errors.UserError(
      f"{path} is neither a .npy file, nor a PEFT adapter (it has no "
      "adapter_config.json), nor a T5X checkpoint.")


def read(
    path: str | os.PathLike, variable: str | None = None,
    sizes: peft.Base | None = None,
) -> np.ndarray:
  """A prompt [P, H], or a prefix [P, L * 2 * K * D], of any format.

  Args:
    path: see the module.
    variable: which array of a T5X checkpoint, such as
      `encoder/prompt/prompt/prompt`; the only prompt in it if None.
    sizes: of the model that a PEFT adapter must fit; a prefix needs them.

  Returns:
    The table in float32.

  Raises:
    UserError: if there is no such prompt, or it is damaged.
  """
  path = os.fspath(path)
  found = kind(path)
  if variable and found != "t5x":
    raise errors.UserError(
        f"{path} is {FORMATS[found]}, which has no variables such as "
        f"{variable!r}: name a T5X checkpoint, or leave the variable out.")
  if found == "npy":
    return npy.read(path)
  if found == "instance":
    return instance.shared_prompt(path)
  return _read_peft(path, sizes) if found == "peft" else _read_t5x(
      path, variable)


def short_names(paths: Sequence[str | os.PathLike]) -> list[str]:
  """What tells some paths apart: each without the folders that all share.

  `runs/a/prompt.npy` and `runs/b/prompt.npy` are `a_prompt` and `b_prompt`; a
  path that is named twice is numbered.
  """
  full = [os.path.abspath(path).removesuffix(".npy") for path in paths]
  shared = os.path.commonpath([os.path.dirname(path) for path in full])
  names = [os.path.relpath(path, shared).replace(os.sep, "_") for path in full]
  return [
      name if names.count(name) == 1 else f"{name}_{names[:i].count(name)}"
      for i, name in enumerate(names)]


def _is_variable(path: str | os.PathLike) -> bool:
  return (os.path.basename(os.path.normpath(path)).startswith("target.")
          and os.path.isfile(os.path.join(path, ".zarray")))


def _read_peft(path: str, sizes: peft.Base | None) -> np.ndarray:
  adapter = peft.load(path)
  if adapter.type not in _ONE_TABLE:
    raise errors.UserError(
        f"{path} is a {adapter.type}, which is more than one table: only "
        f"{', '.join(_ONE_TABLE)} have another format.")
  if sizes is not None:
    [values] = flax.traverse_util.flatten_dict(
        peft.to_params(adapter, sizes)).values()
    return values
  if adapter.type == "PREFIX_TUNING":
    raise errors.UserError(
        f"{path} is a prefix, whose layout the model decides: give --base, or "
        "evaluate it as ADAPTER.")
  return peft.plain_table(adapter)


def _read_t5x(path: str, variable: str | None) -> np.ndarray:
  folder = os.path.normpath(path)
  if _is_variable(path):
    folder, name = os.path.split(folder)
    variable = variable or name.removeprefix("target.").replace(".", "/")
  folder = folder or "."
  found = [variable] if variable else _prompts(folder)
  if len(found) != 1:
    raise errors.UserError(
        f"{path} holds {len(found)} prompts"
        f"{f' ({checkpoints.names(found, 5)})' if found else ''}: give the "
        "folder of one variable in it, such as "
        "target.encoder.prompt.prompt.prompt.")
  values = base_lib.read_variable(folder, found[0], np.float32)
  if values.ndim != 2 or not values.size:
    raise errors.UserError(
        f"{path} has the shape {values.shape}, and a prompt is [P, H]: give "
        "the folder of a prompt's variable.")
  if not np.isfinite(values).all():
    raise errors.UserError(
        f"{path} has NaN or infinite values in {found[0]}: the training that "
        "made them diverged, take an earlier checkpoint.")
  return values


def _prompts(folder: str) -> list[str]:
  """Paths of the two-dimensional arrays of prompts in a checkpoint."""
  return [
      path for path, leaf in base_lib.open_base(folder).arrays.items()
      if {"prompt", "prefix"} & set(path.split("/")) and len(leaf.shape) == 2]
