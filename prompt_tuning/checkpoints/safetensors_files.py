"""Safetensors files, read and written a few megabytes at a time.

The format: https://github.com/huggingface/safetensors#format. Its library
checks a header before anything is believed: sizes, offsets, overlaps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import json
import math
import struct
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from prompt_tuning import checkpoints, formats
from prompt_tuning.checkpoints.families import weights

# What is taken for a weight; quantised tensors are not.
DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a safetensors file.

  Attributes:
    file: where it is.
    name: the file's name for it.
    shape: as stored.
    dtype: the file's word for it; a key of `DTYPES` if it is a weight.
  """

  file: str
  name: str
  shape: tuple[int, ...]
  dtype: str


def tensors(file: str) -> dict[str, Tensor]:
  """What `file` holds, by name.

  Raises:
    UserError: if it is missing or damaged.
  """
  with _opened(file) as opened:
    views = {name: opened.get_slice(name) for name in opened.keys()}
    return {
        name: Tensor(file, name, tuple(view.get_shape()), view.get_dtype())
        for name, view in views.items()}


def blocks(tensor: Tensor, piece: weights.Piece) -> Iterator[checkpoints.Block]:
  """Cuts one piece of a tensor into blocks, in its stored orientation.

  Args:
    tensor: of a dtype in `DTYPES` and the shape `piece.stored`.
    piece: which of its rows or columns are wanted.

  Yields:
    (index, block), where the index is of the piece: see `BaseWeights.blocks`.
  """
  rows, rest = piece.stored[0], piece.stored[1:]
  itemsize = DTYPES[tensor.dtype].itemsize
  step = max(1, checkpoints.BLOCK_BYTES // (math.prod(rest) * itemsize))
  part = piece.part or weights.Part(0, rows)
  if part.axis == 1:
    yield from _columns(tensor, part, step)
    return
  whole = tuple(slice(0, n) for n in rest)
  for at, block in _rows(tensor, part, step):
    yield (slice(at, at + len(block)), *whole), block


def _columns(tensor: Tensor, part: weights.Part, step: int):
  """Blocks of at most `step` rows, of the columns of one stretch each."""
  rows, stretch = tensor.shape[0], tensor.shape[1] // part.count
  for i, low in itertools.product(range(part.count), range(0, rows, step)):
    high, first = min(low + step, rows), i * stretch + part.start
    index = slice(low, high), slice(i * part.size, (i + 1) * part.size)
    yield index, _read(
        tensor, slice(low, high), slice(first, first + part.size))


def _rows(tensor: Tensor, part: weights.Part, step: int):
  """Blocks of at most `step` rows, each with its first row in the piece."""
  stretch = tensor.shape[0] // part.count
  together = step // stretch
  if together:  # read several stretches at once, and leave out what is between
    for i in range(0, part.count, together):
      j = min(i + together, part.count)
      block = _read(tensor, slice(i * stretch, j * stretch))
      block = block.reshape(j - i, stretch, *tensor.shape[1:])
      block = block[:, part.start:part.start + part.size]
      yield i * part.size, block.reshape(-1, *tensor.shape[1:])
    return
  for i, low in itertools.product(
      range(part.count), range(0, part.size, step)):
    high, first = min(low + step, part.size), i * stretch + part.start
    yield i * part.size + low, _read(
        tensor, slice(first + low, first + high))


def _read(tensor: Tensor, *index: slice) -> np.ndarray:
  # The library maps the file, and pages that were read count as ours until it
  # is closed: hence opened again for each block.
  with _opened(tensor.file) as file:
    return file.get_slice(tensor.name)[index]


@contextlib.contextmanager
def _opened(file: str):
  """`safetensors.safe_open` whose errors name the file."""
  with (checkpoints.reading(file, safetensors.SafetensorError),
        safetensors.safe_open(file, framework="numpy") as opened):
    yield opened


# By tensor, the pieces that make it, each with what gives its values.
Pieces = Mapping[
    str, Sequence[tuple[weights.Piece, Callable[[], np.ndarray]]]]


def size(pieces: Pieces, name: str, dtype: np.dtype) -> int:
  """Bytes of one tensor."""
  return math.prod(pieces[name][0][0].stored) * dtype.itemsize


def write(file: str | None, pieces: Pieces, dtype: np.dtype):
  """Writes tensors one after the other; only one is held at a time.

  Args:
    file: to make or to replace; None only asks for the values, where another
      process writes and they are gathered from all.
    pieces: what to write.
    dtype: of all tensors.

  Raises:
    UserError: if it cannot be written.
  """
  # Transformers refuses files without this word of metadata.
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  word = {d: name for name, d in DTYPES.items()}[dtype]
  end = 0
  for name in sorted(pieces):
    begin, end = end, end + size(pieces, name, dtype)
    header[name] = {
        "dtype": word, "shape": pieces[name][0][0].stored,
        "data_offsets": [begin, end]}
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # keeps the values aligned
  if file is None:
    for name in sorted(pieces):
      for _, value in pieces[name]:
        value()
    return
  with formats.whole_file(file) as stream:
    stream.write(struct.pack("<Q", len(text)) + text)
    for name in sorted(pieces):
      stored = np.empty(pieces[name][0][0].stored, dtype)
      for piece, value in pieces[name]:
        piece.put(np.asarray(value()), stored)
      stream.write(stored.reshape(-1).view(np.uint8))
