"""Turns a prompt, or a prefix, from one format into another.

    python -m prompt_tuning.scripts.convert \\
        --from prompt.npy --to sst2_adapter --base t5_1_1_small

The formats are known by their names: a `.npy` file (with its card beside it), a
folder of a PEFT adapter, and a T5X checkpoint `checkpoint_N` or, inside it, one
variable's folder `target.encoder.prompt.prompt.prompt`. PEFT's files say what
model they are for, so making one needs `--base`; with it, the prompt is checked
against the model, and a `.npy` gets a card.
"""

import argparse
import dataclasses
import os
import re
import sys

import flax
import numpy as np

from prompt_tuning import errors
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.formats import card, npy, peft, prompt_file, t5x

_PREFIX = "decoder/prefix/prefix"


@dataclasses.dataclass(frozen=True)
class _Prompt:
  """A prompt [P, H] or prefix [P, L * 2 * K * D] on its way.

  Attributes:
    values: the table.
    known: what its card said, if it had one.
  """

  values: np.ndarray
  known: card.Card | None = None


@dataclasses.dataclass(frozen=True)
class _Base:
  """The model that the prompt is for.

  Attributes:
    path: as given.
    sizes: None where the checkpoint does not say what model it is.
    fingerprint: of its embedding table.
    width: H.
  """

  path: str
  sizes: peft.Base | None
  fingerprint: str
  width: int

  def place(self, source: str, values: np.ndarray) -> str:
    """The parameter that a table is, by its width."""
    found, sizes = values.shape[1], self.sizes
    if found == self.width:
      return (sizes.prompt_path if sizes else "encoder/prompt/prompt"
              ) + "/prompt"
    prefix = sizes and (
        2 * sizes.num_decoder_layers * sizes.num_kv_heads * sizes.head_dim)
    if found == prefix:
      return _PREFIX
    raise errors.UserError(
        f"{source} has width {found}, and {self.path} has {self.width} for "
        f"prompts{f' and {prefix} for prefixes' if prefix else ''}: give the "
        "base model that it was trained on.")


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.convert", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      "--from", dest="source", required=True, metavar="PATH",
      help="what to read")
  parser.add_argument(
      "--to", dest="target", required=True, metavar="PATH",
      help="what to make; must not exist")
  parser.add_argument(
      "--base", default=None, metavar="PATH",
      help="checkpoint of the model that the prompt was trained on")
  flags = parser.parse_args(arguments)
  with errors.reported():
    print(convert(flags.source, flags.target, flags.base))


def convert(source: str, target: str, base: str | None = None) -> str:
  """Reads a prompt in one format and writes it in another.

  Args:
    source: see the module.
    target: see the module; must not exist.
    base: checkpoint of the model that the prompt was trained on.

  Returns:
    A sentence about what was done.

  Raises:
    UserError: if the source is not a prompt or is not one for this base, or
      the target cannot be made; nothing is left half-written.
  """
  kind, wanted = prompt_file.kind(source), _kind_for(target)
  if kind == wanted:
    raise errors.UserError(
        f"{source} and {target} are the same format "
        f"({prompt_file.FORMATS[kind]}): copy it, or give a target of another.")
  if os.path.lexists(target):
    raise errors.UserError(f"{target} exists: give a name that is not taken.")
  known = _open_base(base) if base else None
  if wanted == "peft" and (known is None or known.sizes is None):
    raise errors.UserError(
        "A PEFT adapter says what model it is for: give --base, the folder of "
        "a Hugging Face model or a GGUF file.")
  prompt = _read(source, known)
  place = (known.place(source, prompt.values) if known
           else "encoder/prompt/prompt/prompt")
  _WRITERS[wanted](target, prompt, known, place)
  length, width = prompt.values.shape
  return f"{target}: {length} x {width}, {prompt_file.FORMATS[wanted]}"


def read(path: str, base: str | None = None) -> np.ndarray:
  """A prompt [P, H], or prefix, in any of the formats.

  Args:
    path: see the module.
    base: checkpoint of the model that it must have been trained on.

  Raises:
    UserError: if it is none, or not one for this base.
  """
  known = _open_base(base) if base else None
  values = _read(path, known).values
  if known is not None:
    known.place(path, values)  # its width
  return values


def _kind_for(path: str) -> str:
  if path.endswith(".npy"):
    return "npy"
  if os.path.basename(os.path.normpath(path)).startswith("checkpoint"):
    return "t5x"
  return "peft"


def _open_base(path: str) -> _Base:
  weights = base_lib.open_base(path)
  sizes = peft.Base.of(weights) if getattr(weights, "config", None) else None
  return _Base(
      path, sizes, base_lib.fingerprint(path),
      weights.arrays[base_lib.EMBEDDING].shape[1])


def _read(path: str, base: _Base | None) -> _Prompt:
  values = prompt_file.read(path, sizes=base.sizes if base else None)
  if prompt_file.kind(path) != "npy":
    return _Prompt(values)
  if base is not None:
    return _Prompt(values, card.check(path, base.fingerprint, base.path))
  beside = card.card_path(path)
  return _Prompt(
      values, card.read_card(beside) if os.path.exists(beside) else None)


# ---------------------------------------------------------------------- writing


def _write_npy(path, prompt: _Prompt, base: _Base | None, place: str) -> None:
  del place
  npy.write(path, prompt.values)
  known = prompt.known
  if base is None and known is None:
    return
  card.write_card(
      path,
      base_model=os.path.basename(os.path.abspath(base.path)) if base
      else known.base_model,
      base_fingerprint=base.fingerprint if base else known.base_fingerprint,
      task=known.task if known else "", metric=known.metric if known else {},
      step=known.step if known else 0,
      settings=known.settings if known else {})


def _write_peft(path, prompt: _Prompt, base: _Base, place: str) -> None:
  kind = "PREFIX_TUNING" if place == _PREFIX else "PROMPT_TUNING"
  params = flax.traverse_util.unflatten_dict({place: prompt.values}, sep="/")
  peft.save(peft.from_params(params, base.sizes, kind), path)


def _write_t5x(path, prompt: _Prompt, base: _Base | None, place: str) -> None:
  del base
  number = re.fullmatch(
      r"checkpoint_(\d{1,9})", os.path.basename(os.path.normpath(path)))
  # T5X takes the step from the folder's name, too.
  t5x.write(path, place, prompt.values, int(number[1]) if number else 0)


_WRITERS = {"npy": _write_npy, "peft": _write_peft, "t5x": _write_t5x}

if __name__ == "__main__":
  sys.exit(main())
