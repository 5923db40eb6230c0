"""Examples as token ids, in memory and on disk.

Ids of all examples lie in one flat array with offsets, so that a task is one
memory map however many examples it has, and any row is found at once. Their
folder holds one `.npy` an array and `index.json` with the sha256 of each; it
is there whole or not at all, and checked when read.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np

from prompt_tuning import errors

_INDEX = "index.json"

_ARRAYS = (
    "inputs", "inputs_offsets", "targets", "targets_offsets", "originals",
    "originals_offsets")


@dataclasses.dataclass(frozen=True)
class Truncation:
  """What did not fit: in how many examples, and how many tokens of them."""

  examples: int
  tokens: int


@dataclasses.dataclass(frozen=True)
class Examples:
  """N tokenised examples of one split of one task.

  Attributes:
    task_name: where they come from.
    split: where they come from.
    arrays: int32 ids `inputs` and `targets` of all examples on end, and int64
      `inputs_offsets`, `targets_offsets` [N + 1]; example i's inputs are
      `inputs[inputs_offsets[i]:inputs_offsets[i + 1]]`. The examples as the
      task gave them are lines of JSON in the uint8 array `originals`.
    truncated: per feature, what was cut.
    fingerprint: of the task, split, encoding, vocabularies and lengths; of
      the ids if the task has none.
    encodings: [N, E] float32 by another network, see `encodings`; None if
      there is none. They have files of their own.
    encoder_ids: ids [N, S] int32 for such a network that is trained, and their
      mask [N, S] bool; None if there is none.
    labels: ids of all that targets can be, for models that weigh them against
      each other; () for others. They are not in the files.
  """

  task_name: str
  split: str
  arrays: Mapping[str, np.ndarray]
  truncated: Mapping[str, Truncation]
  fingerprint: str
  encodings: np.ndarray | None = None
  encoder_ids: tuple[np.ndarray, np.ndarray] | None = None
  labels: tuple[tuple[int, ...], ...] = ()

  def __len__(self) -> int:
    return len(self.arrays["inputs_offsets"]) - 1

  def ids(self, feature: str, index: int) -> np.ndarray:
    """The ids [length] of one example, any end-of-sequence included."""
    start, end = self._span(feature, index)
    return self.arrays[feature][start:end]

  def lengths(self, feature: str) -> np.ndarray:
    """The number of ids of every example, [N] int64."""
    return np.diff(self.arrays[f"{feature}_offsets"])

  def select(self, indices: Sequence[int]) -> "Examples":
    """Some of the examples, in the order of their indices."""
    arrays = {}
    for name in self.arrays:
      if name.endswith("_offsets"):
        continue
      rows = Rows(self.arrays[name].dtype)
      for index in indices:
        start, end = self._span(name, index)
        rows.append(self.arrays[name][start:end])
      arrays[name], arrays[f"{name}_offsets"] = rows.flat()
    chosen = np.asarray(indices)
    return dataclasses.replace(
        self, arrays=arrays, fingerprint=content_fingerprint(arrays),
        encodings=None if self.encodings is None else self.encodings[chosen],
        encoder_ids=None if self.encoder_ids is None else tuple(
            part[chosen] for part in self.encoder_ids))

  def original(self, index: int) -> dict[str, Any]:
    """The example as the task gave it; arrays have become lists."""
    start, end = self._span("originals", index)
    return json.loads(self.arrays["originals"][start:end].tobytes())

  def _span(self, name: str, index: int) -> tuple[int, int]:
    offsets = self.arrays[f"{name}_offsets"]
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}")
    return int(offsets[index]), int(offsets[index + 1])


def spread(count: int, wanted: int | None) -> np.ndarray:
  """Rising indices of `wanted` of `count` examples, at equal distances."""
  if wanted is None or wanted >= count:
    return np.arange(count)
  return np.arange(wanted) * count // wanted


class Rows:
  """Rows of different lengths on end, as bytes until all are there."""

  def __init__(self, dtype):
    self._dtype = dtype
    self._bytes = bytearray()
    self._ends = [0]

  def __len__(self):
    return len(self._ends) - 1

  def append(self, row) -> None:
    """Adds one row of numbers."""
    row = np.asarray(row, self._dtype)
    self._bytes += row.tobytes()
    self._ends.append(self._ends[-1] + len(row))

  def flat(self) -> tuple[np.ndarray, np.ndarray]:
    """The rows on end, and the offsets [N + 1] of their starts and ends."""
    return (np.frombuffer(self._bytes, self._dtype),
            np.asarray(self._ends, np.int64))


def content_fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
  """sha256 of the ids and the originals themselves."""
  digest = hashlib.sha256()
  for name in _ARRAYS:
    digest.update(arrays[name])
  return digest.hexdigest()


def write(examples: Examples, folder: pathlib.Path) -> None:
  """Writes a folder, unless another process was quicker with the same.

  Args:
    examples: what it holds.
    folder: must not be there yet; its parents are made.

  Raises:
    UserError: it cannot be written.
  """
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathlib.Path(tempfile.mkdtemp(
        prefix=f".{folder.name}-", dir=folder.parent))
  except OSError as error:
    raise errors.UserError(
        f"cannot write tokenised examples to {folder.parent}: "
        f"{error.strerror}; name a writable folder") from error
  try:
    _write_files(examples, unfinished)
    try:
      os.rename(unfinished, folder)
    except OSError:
      if not folder.is_dir():
        raise
      # Another process was quicker with the same examples.
  except OSError as error:
    raise errors.UserError(
        f"cannot write tokenised examples to {folder}: {error.strerror}; make "
        "room or name another folder") from error
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def read(folder: pathlib.Path, fingerprint: str) -> Examples:
  """Examples as `write` left them, their arrays memory-mapped.

  Raises:
    OSError, ValueError, KeyError or TypeError: the folder is damaged, or of
      another fingerprint.
  """
  index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
  if index["fingerprint"] != fingerprint:
    raise ValueError("another fingerprint")
  arrays = {}
  for name in _ARRAYS:
    path = folder / f"{name}.npy"
    if sha256(path) != index["sha256"][name]:
      raise ValueError(f"{path.name} has another sha256")
    # A view of the map as a plain array: slices of np.memmap are slow.
    arrays[name] = np.asarray(
        np.load(path, mmap_mode="r", allow_pickle=False))
  truncated = {name: Truncation(*counts)
               for name, counts in index["truncated"].items()}
  return Examples(
      index["task"], index["split"], arrays, truncated, fingerprint)


def sha256(path: pathlib.Path) -> str:
  """Of a file's content."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _write_files(examples: Examples, folder: pathlib.Path) -> None:
  sums = {}
  for name in _ARRAYS:
    with open(folder / f"{name}.npy", "wb") as file:
      np.save(file, examples.arrays[name], allow_pickle=False)
      _sync(file)
    sums[name] = sha256(folder / f"{name}.npy")
  index = {
      "task": examples.task_name,
      "split": examples.split,
      "fingerprint": examples.fingerprint,
      "truncated": {name: [cut.examples, cut.tokens]
                    for name, cut in examples.truncated.items()},
      "sha256": sums,
  }
  with open(folder / _INDEX, "w", encoding="utf-8") as file:
    json.dump(index, file, indent=2)
    _sync(file)


def _sync(file) -> None:
  file.flush()
  os.fsync(file.fileno())
