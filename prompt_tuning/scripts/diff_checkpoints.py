"""Tells whether two checkpoints are the same, and where they differ.

    python -m prompt_tuning.scripts.diff_checkpoints a/checkpoint_3 b/model

Each is one of what is read here: a T5X checkpoint, a Hugging Face directory, a
GGUF file, a checkpoint of our own runs, a PEFT adapter, a `.npy` file. Compared
are all parameters, and the optimizer's state where the format has one; base
models go by T5X's names, so that two formats of one model can be compared.

Exit status: 0 without a difference, 1 with any, 2 on bad input.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import math
import os
import random
import sys

import numpy as np

from prompt_tuning import errors, formats
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.checkpoints import runs
from prompt_tuning.checkpoints import t5x as t5x_reader
from prompt_tuning.formats import npy, peft

_STATE = "state/"  # what is not a parameter


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What is compared: read array by array, as far as the format lets it.

  Attributes:
    arrays: for each name, shape, dtype and what reads the values.
    step: None where the format has none.
  """

  arrays: Mapping[str, tuple[tuple[int, ...], np.dtype, Callable]]
  step: int | None = None


@dataclasses.dataclass(frozen=True)
class Difference:
  """One difference.

  Attributes:
    kind: "missing", "shape", "value", "dtype" or "step".
    name: of the array.
    what: how they differ, in words.
    largest: of a value: the largest absolute difference of two elements.
  """

  kind: str
  name: str
  what: str
  largest: float | None = None


def main(arguments=None):
  parser = argparse.ArgumentParser(
      prog="python -m prompt_tuning.scripts.diff_checkpoints",
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("a")
  parser.add_argument("b")
  parser.add_argument(
      "--frac", type=float, default=1.0,
      help="compare the values of this fraction of the arrays, above 0")
  parser.add_argument(
      "--seed", type=int, default=None, help="of the choice for --frac")
  parser.add_argument(
      "--check", action="append", default=[], metavar="NAME",
      help="an array to compare whatever --frac leaves out; may be repeated")
  parser.add_argument(
      "--limit_to_params", action="store_true",
      help="leave out the optimizer's state, which T5X's checkpoints and "
      "those of our runs have")
  parser.add_argument(
      "--compare_step", action="store_true", help="compare the step, too")
  parser.add_argument(
      "--rtol", type=float, default=0.0,
      help="let values differ by this part of b's; then dtypes may, too")
  parser.add_argument(
      "--atol", type=float, default=0.0, help="the same, absolute")
  parser.add_argument(
      "--output", default=None, metavar="JSON", help="file for the result")
  flags = parser.parse_args(arguments)
  with errors.reported():
    found = diff(
        open_checkpoint(flags.a, flags.limit_to_params),
        open_checkpoint(flags.b, flags.limit_to_params), frac=flags.frac,
        seed=flags.seed, check=flags.check, compare_step=flags.compare_step,
        rtol=flags.rtol, atol=flags.atol)
    if flags.output:
      content = {"a": flags.a, "b": flags.b, "differences": [
          {"kind": d.kind, "name": d.name, "what": d.what,
           # JSON has no infinity
           "largest": d.largest if d.largest != math.inf else None}
          for d in found]}
      formats.write_whole(
          flags.output, (json.dumps(content, indent=2) + "\n").encode())
  for one in found:
    print(f"{one.kind:8}{one.name}: {one.what}")
  print(f"{len(found)} differences" if found else "no difference")
  return 1 if found else 0


def diff(
    a: Checkpoint, b: Checkpoint, *, frac: float = 1.0,
    seed: int | None = None, check: Sequence[str] = (),
    compare_step: bool = False, rtol: float = 0.0, atol: float = 0.0,
) -> list[Difference]:
  """All differences, the largest first.

  Args:
    a: one checkpoint.
    b: the other.
    frac: of the arrays that both have, how many's values to compare; names,
      shapes and dtypes are always compared.
    seed: of the choice.
    check: names that are compared in any case.
    compare_step: whether different steps are a difference.
    rtol: as for `numpy.isclose`, with which NaN equals NaN here.
    atol: the same. With either, dtypes may differ.

  Returns:
    Missing names, shapes, steps, values by their largest difference, dtypes.

  Raises:
    UserError: if an option is out of range, or a file is damaged.
  """
  if not 0 < frac <= 1 or rtol < 0 or atol < 0:
    raise errors.UserError(
        f"--frac {frac} must be above 0 and at most 1, --rtol {rtol} and "
        f"--atol {atol} not negative.")
  shared = [name for name in a.arrays if name in b.arrays]
  chosen = _chosen(shared, frac, seed, check)
  found = [
      Difference("missing", name, f"only in {side}")
      for side, one, other in (("a", a, b), ("b", b, a))
      for name in one.arrays if name not in other.arrays]
  if compare_step and a.step != b.step:
    found.append(Difference("step", "step", f"{a.step} and {b.step}"))
  for name in shared:
    found += _differences(
        name, a.arrays[name], b.arrays[name], name in chosen, rtol, atol)
  order = ("missing", "shape", "step", "value", "dtype")
  return sorted(found, key=lambda d: (
      order.index(d.kind), -(d.largest or 0.0), d.name))


def _chosen(shared, frac: float, seed, check: Sequence[str]) -> set[str]:
  asked = [name.removeprefix("/").removeprefix("target/") for name in check]
  for name in asked:
    if name not in shared:
      raise errors.UserError(
          f"--check {name} is not in both checkpoints: give a name that is.")
  count = math.ceil(len(shared) * frac)  # at least one, if there is one
  return {*random.Random(seed).sample(shared, count), *asked}


def _differences(name: str, a, b, with_values: bool, rtol, atol):
  """How two arrays of one name differ, if they do."""
  (shape_a, dtype_a, read_a), (shape_b, dtype_b, read_b) = a, b
  if shape_a != shape_b:
    yield Difference("shape", name, f"{shape_a} and {shape_b}")
    return
  if dtype_a != dtype_b and not (rtol or atol):
    yield Difference("dtype", name, f"{dtype_a} and {dtype_b}")
  if not with_values:
    return
  # Complex numbers and wide integers occur in no checkpoint of a model.
  x, y = (np.asarray(read()).astype(np.float64) for read in (read_a, read_b))
  other = ~np.isclose(x, y, rtol, atol, equal_nan=True)
  if count := np.count_nonzero(other):
    with np.errstate(invalid="ignore"):  # infinity less infinity
      apart = np.abs(x - y)[other].max()
    largest = math.inf if np.isnan(apart) else float(apart)
    yield Difference(
        "value", name, f"{count} of {x.size} elements "
        f"({100 * count / x.size:.3g} %), by up to {largest:.4g}", largest)


# ------------------------------------------------------- what can be compared


def open_checkpoint(path: str, only_parameters: bool = False) -> Checkpoint:
  """Opens a checkpoint of any kind; see the module.

  Args:
    path: of the file or folder.
    only_parameters: whether to leave out the optimizer's state, whose names
      begin with `state/`.

  Raises:
    UserError: if it is none.
  """
  if os.path.isfile(os.path.join(path, "manifest.json")):
    found = _open_run(path)
  elif os.path.isdir(path) and peft.is_adapter(path):
    found = _in_memory(peft.load(path).tensors)
  elif os.path.isfile(path) and not path.endswith(".gguf"):
    found = _in_memory({"array": npy.read(path)})
  else:
    found = _open_base(path)
  return dataclasses.replace(found, arrays={
      name: array for name, array in found.arrays.items()
      if not (only_parameters and name.startswith(_STATE))})


def _open_base(path: str) -> Checkpoint:
  weights = base_lib.open_base(path)
  arrays = _lazy(weights, "")
  if isinstance(weights, t5x_reader.T5XCheckpoint):
    arrays |= _lazy(t5x_reader.T5XCheckpoint(path, "state"), _STATE)
  return Checkpoint(arrays, getattr(weights, "step", None))


def _lazy(weights, prefix: str) -> dict:
  def read(name: str) -> np.ndarray:
    spec = weights.arrays[name]
    values = np.empty(spec.shape, spec.dtype)
    weights.read_into(name, values)
    return values

  return {
      prefix + name: (tuple(spec.shape), np.dtype(spec.dtype),
                      lambda name=name: read(name))
      for name, spec in weights.arrays.items()}


def _open_run(path: str) -> Checkpoint:
  """A run's own: the trained parameters, the optimizer's state, the step."""
  arrays = runs.read(path)
  step = arrays.pop("step", None)
  named = {}
  for name, values in arrays.items():
    part, _, rest = name.partition("/")
    named[rest if part == "trainable" else _STATE + name] = values
  return dataclasses.replace(
      _in_memory(named), step=None if step is None else int(step))


def _in_memory(arrays: Mapping[str, np.ndarray]) -> Checkpoint:
  return Checkpoint({
      name: (values.shape, values.dtype, lambda values=values: values)
      for name, values in arrays.items()})


if __name__ == "__main__":
  sys.exit(main())
