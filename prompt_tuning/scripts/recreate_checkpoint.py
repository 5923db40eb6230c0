"""Puts trained prompts and their base model into one checkpoint for T5X.

    python -m prompt_tuning.scripts.recreate_checkpoint \\
        --base t5_1_1_lm100k_base/checkpoint_1100000 \\
        --prompt runs/sst2/numpy_checkpoints/checkpoint_1130000 \\
        --output runs/sst2/whole/checkpoint_1130000

Without a prompt it is the base alone, such as a Hugging Face directory that T5X
is to train on. What is made holds parameters and a step, as evaluation and
inference read them, and T5X when it starts a new training. The optimizer's
state of that step is nowhere, so a training cannot go on from it as if nothing
had happened; ours goes on from the checkpoints in its own folder.
"""

import argparse
from collections.abc import Iterator
import os
import re
import sys

import numpy as np

from prompt_tuning import checkpoints, errors
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.formats import npy, t5x
from prompt_tuning.scripts import convert


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.recreate_checkpoint",
      description=__doc__.split("\n")[0])
  parser.add_argument(
      "--base", required=True, metavar="PATH",
      help="the model: a T5X checkpoint, a Hugging Face directory or a GGUF "
      "file")
  parser.add_argument(
      "--prompt", default=None, metavar="PATH",
      help="a prompt in any format, or a run's numpy_checkpoints/checkpoint_N "
      "(default: none, the base alone)")
  parser.add_argument(
      "--output", required=True, metavar="PATH",
      help="the folder to make: checkpoint_N, where N is the step")
  parser.add_argument(
      "--variable", default=None, metavar="NAME",
      help="the parameter that a prompt without a name is (default: "
      "encoder/prompt/prompt/prompt, of a decoder-only model decoder/…)")
  parser.add_argument(
      "--save_dtype", choices=("float32", "bfloat16"), default="float32")
  flags = parser.parse_args(arguments)
  with errors.reported():
    names = recreate(
        flags.base, flags.prompt, flags.output, flags.variable,
        flags.save_dtype)
    what = f"the base and {', '.join(names)}" if names else "the base alone"
    print(f"{flags.output}: {what}")


def recreate(
    base: str | os.PathLike, prompt: str | None, output: str,
    variable: str | None = None, dtype: str = "float32",
) -> list[str]:
  """Writes the checkpoint, one array of the base after the other.

  Args:
    base: see `checkpoints.base.open_base`.
    prompt: see `convert.read`; or a folder of `.npy` files, each with the
      dotted path of its parameter for a name; None for the base alone.
    output: the folder to make; its name ends in the step.
    variable: see `main`.
    dtype: what to write, "float32" or "bfloat16".

  Returns:
    The paths of what was put in.

  Raises:
    UserError: if something cannot be read, the prompt is of another base, or
      the output exists or cannot be written; nothing is left half-written.
  """
  step = re.fullmatch(
      r"checkpoint_(\d{1,9})", os.path.basename(os.path.normpath(output)))
  if step is None:
    raise errors.UserError(
        f"--output {output} must end in checkpoint_N, where N is the training "
        "step: T5X takes the step from the folder's name.")
  weights = base_lib.open_base(base)
  trained = {} if prompt is None else _trained(weights, prompt, variable)
  t5x.write_all(output, _arrays(weights, trained), int(step[1]), dtype)
  return sorted(trained)


def _arrays(
    weights: checkpoints.BaseWeights, trained: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
  """The base's arrays but those that are trained, and those."""
  for name, stored in weights.arrays.items():
    if name not in trained:
      values = np.empty(stored.shape, stored.dtype)
      weights.read_into(name, values)
      yield name, values
  yield from trained.items()


def _trained(
    weights: checkpoints.BaseWeights, prompt: str, variable: str | None
) -> dict[str, np.ndarray]:
  """The trained parameters by their paths, checked against the base."""
  files = _numpy_files(prompt)
  if variable is not None and len(files) > 1:
    raise errors.UserError(
        f"{prompt} holds {len(files)} parameters, each with its name: leave "
        "--variable out.")
  if not files:  # one prompt, whose card or adapter may know the base
    values = convert.read(prompt, weights.path)
    files = {variable or _name_of(prompt, weights): values}
  elif variable is not None:
    files = {variable: next(iter(files.values()))}
  for name, values in files.items():
    _check(weights, name, values, prompt)
  return files


def _numpy_files(folder: str) -> dict[str, np.ndarray]:
  """`encoder.prompt.prompt.prompt` in a folder, by path; else nothing."""
  if not os.path.isdir(folder):
    return {}
  entries = [e for e in os.scandir(folder) if e.is_file()]
  names = [e.name for e in entries if re.fullmatch(
      r"(encoder|decoder)\.[\w.]+", e.name) and not e.name.endswith(".json")]
  return {
      name.removesuffix(".npy").replace(".", "/"):
      npy.read(os.path.join(folder, name)) for name in sorted(names)}


def _name_of(prompt: str, weights: checkpoints.BaseWeights) -> str:
  """The parameter of a prompt: its file's name, or what the family has."""
  name = os.path.basename(os.path.normpath(prompt))
  name = name.removeprefix("target.").removesuffix(".npy")
  if re.fullmatch(r"(encoder|decoder)(\.\w+)+", name):
    return name.replace(".", "/")
  side = "encoder" if weights.family in ("t5", "bart") else "decoder"
  return f"{side}/prompt/prompt/prompt"


def _check(weights, name: str, values: np.ndarray, prompt: str) -> None:
  """A prompt [P, H] must have the base's width; others are what they are."""
  width = weights.arrays[base_lib.EMBEDDING].shape[1]
  if name.endswith("/prompt") and values.shape[1] != width:
    raise errors.UserError(
        f"{prompt} has the shape {values.shape}, and {weights.path} the width "
        f"{width}: give the base model that it was trained on.")


if __name__ == "__main__":
  sys.exit(main())
