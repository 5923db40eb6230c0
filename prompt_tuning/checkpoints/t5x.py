"""Reads checkpoints that T5X wrote, without T5X.

T5X has written two layouts, and both are read here:

*   its own: `checkpoint_N/checkpoint` is Flax's MessagePack of the train
    state, where a large array is only a reference to a zarr-v2 folder beside
    the file (`target.encoder.layers_0.attention.query.kernel/`);
*   orbax (its default since 2024): `checkpoint_N/state`, zarr arrays named
    `target.…`, in one OCDBT database or as folders, read with tensorstore.

Only the parameters (`target`) and the step are looked at, the optimizer's state
when it is asked for. Opening reads names, shapes and byte offsets; the bytes of
an array are read when it is asked for.
"""

from collections.abc import Iterator
import dataclasses
import gzip
import itertools
import json
import math
import os
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import checkpoints, errors

# gzip packs at most 1032 bytes into one; a header that claims more lies.
_MOST_COMPRESSION = 1100
_MOST_CHUNKS = 1_000_000
_MOST_NESTING = 64


class T5XCheckpoint(checkpoints.BaseWeights):
  """The parameters of one T5X checkpoint, in T5X's own or in orbax's layout.

  Attributes:
    step: the training step it was written at; None if it does not say.
  """

  family = "t5"

  def __init__(self, path: str | os.PathLike, part: str = "target"):
    """Opens `path`, the folder of one step (`…/checkpoint_1000000`).

    Args:
      path: the folder that holds the file `checkpoint` or the folder `state`.
      part: "target" for the parameters, "state" for the optimizer's state,
        which may be empty.

    Raises:
      UserError: if there is no checkpoint, several of them, or a damaged one.
    """
    self.path = os.fspath(path)
    index = os.path.join(self.path, "checkpoint")
    if os.path.isfile(index):
      self._leaves, self.step = _open_index(index, part)
    elif (state := _orbax_folder(self.path)) is not None:
      self._leaves, self.step = _open_orbax(state, part)
    else:
      raise errors.UserError(_no_checkpoint(self.path))
    if not self._leaves and part == "target":
      raise errors.UserError(
          f"{self.path} holds no parameters (nothing under `target`): give "
          "the folder of a T5X training checkpoint.")
    self.arrays = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in self._leaves.items()}

  def blocks(self, path: str) -> Iterator[checkpoints.Block]:
    """See `BaseWeights.blocks`."""
    return self._leaves[path].blocks()


def is_t5x(path: str | os.PathLike) -> bool:
  """Whether the folder `path` is a T5X checkpoint or holds some."""
  return (os.path.isfile(os.path.join(path, "checkpoint"))
          or _orbax_folder(path) is not None or bool(_steps(path)))


def _steps(path) -> list[str]:
  """Names of the checkpoints inside `path`, in the order of their steps."""
  found = [
      name for name in os.listdir(path)
      if re.fullmatch(r"checkpoint_\d+", name)
      and os.path.isdir(os.path.join(path, name))]
  return sorted(found, key=lambda name: int(name.rpartition("_")[2]))


def _no_checkpoint(path: str) -> str:
  if not os.path.isdir(path):
    return f"There is no checkpoint folder {path}: check the path."
  if steps := _steps(path):
    return (f"{path} is not one checkpoint, it holds "
            f"{checkpoints.names(steps, 10)}: give the folder of one step, "
            f"such as {os.path.join(path, steps[-1])}.")
  return (f"{path} is no T5X checkpoint: it has neither a file `checkpoint` "
          "nor a folder `state`; give the folder of one step "
          "(…/checkpoint_1000000).")


# ------------------------------------------------- T5X's own layout: the index


def _open_index(file: str, part: str):
  """Reads `checkpoint`: the leaves under one of its parts, and the step."""
  with checkpoints.reading(file), open(file, "rb") as stream:
    tree = _MessagePack(file, stream).value()
    version = int(tree.get("version", 0))
    # Version 0 is a bare Flax tree, sometimes of the parameters alone.
    state = tree["optimizer"] if version else tree
    step = state.get("state", {}).pop("step", None)
    tree = state.get(part, state if part == "target" else {})
    leaves = dict(_flatten(tree, os.path.dirname(file)))
    if isinstance(step, _InlineArray):
      step = int(next(step.blocks())[1])
    return {k: _as_bfloat16(v, version) for k, v in leaves.items()}, step


def _as_bfloat16(leaf, version: int):
  """Before version 3, T5X wrote bfloat16 as the same bits in uint16."""
  if version >= 3 or leaf.dtype != np.uint16:
    return leaf
  return dataclasses.replace(leaf, dtype=np.dtype(jnp.bfloat16))


def _flatten(tree: dict, folder: str, prefix: str = ""):
  """Yields (path, leaf) of the arrays in a tree that `_MessagePack` gave."""
  for key, value in tree.items():
    name = f"{prefix}{key}"
    if value is None:  # optimizers leave these for what they do not train
      continue
    if isinstance(value, _InlineArray):
      yield name, value
    elif not isinstance(value, dict):
      raise ValueError(f"{name} is neither an array nor a reference to one")
    elif "__msgpack_chunked_array__" in value:
      yield name, _joined(value)
    elif "kvstore" in value and "driver" in value:
      yield name, _open_zarr(_zarr_folder(value, folder), value)
    else:
      yield from _flatten(value, folder, f"{name}/")


def _joined(value: dict) -> "_InlineArray":
  """Flax cuts arrays above 1 GiB into flat pieces; the array they make."""
  pieces = [value["chunks"][str(i)] for i in range(len(value["chunks"]))]
  shape = tuple(value["shape"][str(i)] for i in range(len(value["shape"])))
  whole = dataclasses.replace(
      pieces[0], shape=shape, spans=sum((p.spans for p in pieces), ()))
  whole.check_size()
  return whole


def _zarr_folder(reference: dict, folder: str) -> str:
  """Where an array is: beside the index, whatever bucket it was written to.

  Taking the last name alone also keeps a crafted path inside the folder.
  """
  path = reference["kvstore"].get("path") or reference["path"]
  name = os.path.basename(path.rstrip("/"))
  if name in ("", ".", ".."):
    raise ValueError(f"it refers to an array at {path!r}")
  return os.path.join(folder, name)


@dataclasses.dataclass(frozen=True)
class _InlineArray:
  """An array whose bytes stand in the index itself, at `spans`."""

  file: str
  shape: tuple[int, ...]
  dtype: np.dtype
  spans: tuple[tuple[int, int], ...]  # (offset, length)

  def check_size(self):
    claimed = math.prod(self.shape) * self.dtype.itemsize
    held = sum(length for _, length in self.spans)
    if min(self.shape, default=0) < 0 or claimed != held:
      raise ValueError(
          f"an array of shape {self.shape} and dtype {self.dtype} has {held} "
          f"bytes instead of {claimed}")

  def blocks(self) -> Iterator[checkpoints.Block]:
    with checkpoints.reading(self.file), open(self.file, "rb") as file:
      yield from _cut(
          _Spans(file, self.spans), self.dtype, self.shape,
          (0,) * len(self.shape), self.shape)


class _Spans:
  """Reads several spans of a file as if they were one stream."""

  def __init__(self, file, spans):
    self._file = file
    self._spans = list(spans)

  def read(self, count: int) -> bytes:
    pieces = []
    while count and self._spans:
      offset, length = self._spans.pop(0)
      self._file.seek(offset)
      pieces.append(self._file.read(min(count, length)))
      if length > count:
        self._spans.insert(0, (offset + count, length - count))
      count -= len(pieces[-1])
    return b"".join(pieces)


class _MessagePack:
  """Walks a MessagePack file; gives arrays as offsets instead of bytes.

  A library would hold all bytes in memory, and trust the lengths in them.
  The format: https://github.com/msgpack/msgpack/blob/master/spec.md; Flax's
  use of it: extension 1 is an array, 3 a NumPy scalar, each again
  MessagePack of (shape, dtype name, bytes).
  """

  _CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
  _NUMBERS = {
      0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
      0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
  _SIZED = {
      0xC4: ("bytes", ">B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I"),
      0xC7: ("extension", ">B"), 0xC8: ("extension", ">H"),
      0xC9: ("extension", ">I"),
      0xD9: ("text", ">B"), 0xDA: ("text", ">H"), 0xDB: ("text", ">I"),
      0xDC: ("list", ">H"), 0xDD: ("list", ">I"),
      0xDE: ("dict", ">H"), 0xDF: ("dict", ">I")}

  def __init__(self, file: str, stream):
    self._file = file
    self._stream = stream
    self._size = os.fstat(stream.fileno()).st_size
    self._depth = 0

  def value(self):
    """The value at the current position, which moves behind it."""
    byte = self._stream.read(1)
    if not byte:
      raise EOFError("it ends too early")
    code = byte[0]
    if code in self._CONSTANTS:
      return self._CONSTANTS[code]
    if code in self._NUMBERS:
      return self._number(self._NUMBERS[code])
    if code < 0x80:
      return code
    if code >= 0xE0:
      return code - 0x100
    kind, length = self._kind(code)
    return getattr(self, f"_{kind}")(length)

  def _kind(self, code: int) -> tuple[str, int]:
    if code < 0x90:
      return "dict", code & 0x0F
    if code < 0xA0:
      return "list", code & 0x0F
    if code < 0xC0:
      return "text", code & 0x1F
    if 0xD4 <= code <= 0xD8:
      return "extension", 1 << (code - 0xD4)
    if code not in self._SIZED:
      raise ValueError(f"unknown type {code:#x}")
    kind, length = self._SIZED[code]
    return kind, self._number(length)

  def _number(self, form: str):
    data = checkpoints.read_exactly(self._stream, struct.calcsize(form))
    return struct.unpack(form, data)[0]

  def _skip(self, length: int) -> tuple[int, int]:
    """Moves over `length` bytes that must be there; gives their span."""
    start = self._stream.tell()
    if start + length > self._size:
      raise EOFError(f"it ends {start + length - self._size} bytes early")
    self._stream.seek(length, os.SEEK_CUR)
    return start, length

  _bytes = _skip

  def _text(self, length: int) -> str:
    start, _ = self._skip(length)
    self._stream.seek(start)
    return self._stream.read(length).decode("utf-8")

  def _list(self, length: int) -> list:
    return self._nested(lambda: [self.value() for _ in range(length)])

  def _dict(self, length: int) -> dict:
    return self._nested(
        lambda: {str(self.value()): self.value() for _ in range(length)})

  def _nested(self, read):
    if self._depth == _MOST_NESTING:
      raise ValueError("it is nested too deeply")
    self._depth += 1
    result = read()
    self._depth -= 1
    return result

  def _extension(self, length: int):
    code = self._number(">b")
    start, _ = self._skip(length)
    if code not in (1, 3):
      return None
    self._stream.seek(start)
    shape, name, span = self.value()
    if self._stream.tell() != start + length:
      raise ValueError("an array is not as long as its header says")
    array = _InlineArray(self._file, tuple(shape), _dtype(name), (span,))
    array.check_size()
    return array


# -------------------------------------------------- T5X's own layout: the zarr


@dataclasses.dataclass(frozen=True)
class _ZarrArray:
  """One zarr-v2 folder: a C-ordered file per chunk, gzip or raw."""

  folder: str
  shape: tuple[int, ...]
  dtype: np.dtype
  chunks: tuple[int, ...]
  separator: str
  compressed: bool
  fill: float | None

  def blocks(self) -> Iterator[checkpoints.Block]:
    for corner in _corners(self.shape, self.chunks):
      names = [str(o // c) for o, c in zip(corner, self.chunks)]
      file = os.path.join(self.folder, self.separator.join(names) or "0")
      # Only a fill value tells that a chunk was left out on purpose.
      if self.fill is not None and not os.path.exists(file):
        index = _region(corner, self.chunks, self.shape)
        yield index, np.broadcast_to(
            np.asarray(self.fill, self.dtype),
            [s.stop - s.start for s in index])
        continue
      with checkpoints.reading(file), self._open(file) as stream:
        yield from _cut(stream, self.dtype, self.chunks, corner, self.shape)
        if stream.read(1):  # at its end, gzip also checks its checksum
          raise ValueError("it holds more than its header says")

  def _open(self, file: str):
    return gzip.open(file, "rb") if self.compressed else open(file, "rb")


def _open_zarr(folder: str, reference: dict) -> _ZarrArray:
  """Reads `.zarray` and holds its claims against the files beside it."""
  file = os.path.join(folder, ".zarray")
  with checkpoints.reading(file):
    with open(file, encoding="utf-8") as stream:
      header = json.load(stream)
    compressor = header.get("compressor")
    fill = header.get("fill_value")
    array = _ZarrArray(
        folder, tuple(header["shape"]), _dtype(header["dtype"]),
        tuple(header["chunks"]), header.get("dimension_separator", "."),
        compressor is not None, None if fill is None else float(fill))
    if header.get("zarr_format") != 2 or header.get("order", "C") != "C":
      raise ValueError("it is not C-ordered zarr 2")
    if header.get("filters") or compressor and compressor["id"] != "gzip":
      raise ValueError("only gzip without filters is read")
    if array.separator not in (".", "/"):
      raise ValueError(f"separator {array.separator!r}")
    written = reference.get("metadata", {}).get("shape", header["shape"])
    if list(written) != header["shape"]:
      raise ValueError(f"shape {header['shape']}, but the index says {written}")
    _check_claims(array)
  return array


def _check_claims(array: _ZarrArray):
  sizes = (*array.shape, *array.chunks)
  if len(array.shape) != len(array.chunks) or not all(
      type(size) is int and size >= 0 for size in sizes):
    raise ValueError(f"shape {array.shape} in chunks {array.chunks}")
  if 0 in array.chunks:
    raise ValueError(f"chunks {array.chunks}")
  count = math.prod(-(-s // c) for s, c in zip(array.shape, array.chunks))
  if count > _MOST_CHUNKS:
    raise ValueError(f"it claims {count} chunks")
  if array.fill is None:
    held = sum(
        entry.stat().st_size for entry in os.scandir(array.folder)
        if entry.is_file())
    claimed = math.prod(array.shape) * array.dtype.itemsize
    if array.separator == "." and claimed > _MOST_COMPRESSION * held:
      raise ValueError(
          f"it claims {claimed} bytes, but its chunk files have {held}")


def _dtype(name: str) -> np.dtype:
  """The dtype by its name in MessagePack or zarr; only plain numbers."""
  dtype = np.dtype(jnp.bfloat16 if name == "bfloat16" else name)
  if dtype != jnp.bfloat16 and dtype.kind not in "biuf":
    raise ValueError(f"dtype {name!r} is not a number")
  return dtype


def _corners(shape, chunks) -> Iterator[tuple[int, ...]]:
  """The first position of each chunk."""
  return itertools.product(
      *(range(0, size, chunk) for size, chunk in zip(shape, chunks)))


def _region(corner, chunks, shape) -> checkpoints.Index:
  """What of an array a chunk covers: the last one along an axis is cut."""
  return tuple(
      slice(o, min(o + c, s)) for o, c, s in zip(corner, chunks, shape))


def _cut(
    stream, dtype: np.dtype, chunk, corner, shape
) -> Iterator[checkpoints.Block]:
  """Cuts a C-ordered chunk, as it streams in, into blocks along its rows.

  Args:
    stream: has `read`.
    dtype: of the chunk.
    chunk: its shape, padding at the array's edge included.
    corner: where in the array it begins.
    shape: of the array.

  Yields:
    (index, block) without the padding.
  """
  if not chunk:
    yield (), _frombuffer(stream, dtype, ())
    return
  row_bytes = math.prod(chunk[1:]) * dtype.itemsize
  if row_bytes > checkpoints.BLOCK_BYTES and len(chunk) > 1:
    for row in range(corner[0], corner[0] + chunk[0]):
      for index, block in _cut(
          stream, dtype, chunk[1:], corner[1:], shape[1:]):
        if row < shape[0]:
          yield (slice(row, row + 1), *index), block[None]
    return
  step = max(1, checkpoints.BLOCK_BYTES // max(row_bytes, 1))
  for first in range(0, chunk[0], step):
    part = (min(step, chunk[0] - first), *chunk[1:])
    block = _frombuffer(stream, dtype, part)
    index = _region((corner[0] + first, *corner[1:]), part, shape)
    if all(s.stop > s.start for s in index):
      yield index, block[tuple(slice(s.stop - s.start) for s in index)]


def _frombuffer(stream, dtype: np.dtype, shape) -> np.ndarray:
  data = checkpoints.read_exactly(stream, math.prod(shape) * dtype.itemsize)
  return np.frombuffer(data, dtype).reshape(shape)


# -------------------------------------------------------------- orbax's layout


def _orbax_folder(path) -> str | None:
  """The folder that orbax wrote: `path/state`, or `path` itself."""
  for folder in (os.path.join(path, "state"), os.fspath(path)):
    if any(os.path.isfile(os.path.join(folder, name))
           for name in ("manifest.ocdbt", "_METADATA")):
      return folder
  return None


def _open_orbax(folder: str, part: str):
  """Lists the arrays of one part of an orbax folder, and reads the step."""
  store, keys = _orbax_keys(folder)
  step, leaves = None, {}
  for key in keys:
    name, _, header = key.rpartition("/")
    if header not in (".zarray", "zarr.json"):
      continue
    root, _, rest = name.partition(".")
    if name in ("state.step", "step"):
      array = _open_orbax_array(folder, store, name, header)
      if array.shape == ():
        step = int(next(array.blocks())[1])
    elif root == part or (root, part) == ("params", "target"):
      leaves[rest.replace(".", "/")] = _open_orbax_array(
          folder, store, name, header)
  return leaves, step


def _orbax_keys(folder: str) -> tuple[dict, list[str]]:
  """The key-value store of an orbax folder for tensorstore, and its keys."""
  import tensorstore as ts  # 0.2 s, and only needed here

  path = os.path.join(os.path.abspath(folder), "")
  store = {"driver": "file", "path": path}
  if os.path.isfile(os.path.join(folder, "manifest.ocdbt")):
    store = {"driver": "ocdbt", "base": f"file://{path}"}
  with checkpoints.reading(folder):
    keys = ts.KvStore.open(store).result().list().result()
    return store, sorted(key.decode("utf-8") for key in keys)


@dataclasses.dataclass(frozen=True)
class _OrbaxArray:
  """One array behind tensorstore, read chunk by chunk."""

  folder: str
  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  chunks: tuple[int, ...]
  array: object

  def blocks(self) -> Iterator[checkpoints.Block]:
    for corner in _corners(self.shape, self.chunks):
      index = _region(corner, self.chunks, self.shape)
      with checkpoints.reading(f"{self.folder} (array {self.name})"):
        block = np.asarray(self.array[index].read().result())
      yield index, block


def _open_orbax_array(folder, store, name, header) -> _OrbaxArray:
  import tensorstore as ts

  driver = "zarr" if header == ".zarray" else "zarr3"
  path = f"{store.get('path', '')}{name}/"
  with checkpoints.reading(f"{folder} (array {name})"):
    array = ts.open(
        {"driver": driver, "kvstore": {**store, "path": path}},
        open=True, read=True).result()
    return _OrbaxArray(
        folder, name, tuple(array.shape), _dtype(array.dtype.name),
        tuple(array.chunk_layout.read_chunk.shape or ()), array)
