"""GGUF files: what the header says, and rows of the tensors as numbers.

The header is read here and not by the `gguf` package, whose reader believes
what a file says of itself and makes an array for each of its strings. Here
every length and count is held against the file before anything of that size
is made. The package knows the formats' numbers and dequantises.
"""

import contextlib
import dataclasses
import math
import os
import struct

import gguf
import ml_dtypes
import numpy as np

from prompt_tuning.errors import UserError

# A vocabulary of 256,000 tokens with its merges takes 15 MB.
_LARGEST_HEADER = 64 << 20
# Of keys, and of tensors; a model of 405 billion weights has 1,138.
_MOST_NAMES = 1 << 16
_MOST_AXES = 4

_Kind = gguf.GGUFValueType
_NUMBERS = {
    _Kind.UINT8: "u1", _Kind.INT8: "i1", _Kind.UINT16: "<u2",
    _Kind.INT16: "<i2", _Kind.UINT32: "<u4", _Kind.INT32: "<i4",
    _Kind.FLOAT32: "<f4", _Kind.BOOL: "?", _Kind.UINT64: "<u8",
    _Kind.INT64: "<i8", _Kind.FLOAT64: "<f8"}

_Quantization = gguf.GGMLQuantizationType
_PLAIN = {
    _Quantization.F32: np.dtype("<f4"), _Quantization.F16: np.dtype("<f2"),
    _Quantization.BF16: np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where one tensor lies.

  Attributes:
    shape: the last axis is contiguous, as in NumPy (GGUF lists it first).
    kind: how its numbers are stored.
    start: the byte of the file where it begins.
  """

  shape: tuple[int, ...]
  kind: gguf.GGMLQuantizationType
  start: int

  @property
  def dtype(self) -> np.dtype:
    """Of its numbers; those that are quantised become float32."""
    return _PLAIN.get(self.kind, np.dtype(np.float32))

  @property
  def row_bytes(self) -> int:
    """What a row, the last axis, takes in the file."""
    block, size = gguf.GGML_QUANT_SIZES[self.kind]
    return self.shape[-1] // block * size

  @property
  def size(self) -> int:
    """What the tensor takes in the file, in bytes."""
    return math.prod(self.shape[:-1]) * self.row_bytes


@dataclasses.dataclass(frozen=True)
class _Array:
  """An array among the metadata, which stays in the file until wanted."""

  kind: gguf.GGUFValueType
  count: int
  start: int


class GgufFile:
  """An open header; tensors and arrays are read when asked for.

  Attributes:
    path: the file.
    tensors: by name.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads the header.

    Raises:
      UserError: if the file is missing, no GGUF, truncated, or says of itself
        what cannot be.
    """
    self.path = os.fspath(path)
    with _reading(self.path), open(self.path, "rb") as stream:
      cursor = _Cursor(stream)
      counts = _read_start(cursor)
      self._metadata = _read_metadata(cursor, counts[1])
      self.tensors = _read_tensors(
          cursor, counts[0], self._metadata.get("general.alignment", 32))

  def get(self, key: str, default=None):
    """A number or text of the metadata.

    Raises:
      UserError: if it is an array, or of another type than `default`.
    """
    value = self._metadata.get(key, default)
    wanted = type(default)
    if wanted is float and type(value) is int:
      value = float(value)
    if isinstance(value, _Array) or (
        default is not None and type(value) is not wanted):
      raise UserError(
          f"{self.path} has {key} as {_word(value)}, where one "
          f"{'value' if default is None else wanted.__name__} is needed: "
          "convert the model again with a current llama.cpp.")
    return value

  def __contains__(self, key: str) -> bool:
    return key in self._metadata

  def strings(self, key: str) -> list[str]:
    """An array of texts of the metadata; see `numbers` for errors."""
    array = self._array(key, texts=True)
    with _reading(self.path), open(self.path, "rb") as stream:
      cursor = _Cursor(stream, array.start)
      return [cursor.text() for _ in range(array.count)]

  def numbers(self, key: str) -> np.ndarray:
    """An array of numbers of the metadata.

    Raises:
      UserError: if there is none of that name, or it holds something else.
    """
    array = self._array(key, texts=False)
    dtype = np.dtype(_NUMBERS[array.kind])
    with _reading(self.path), open(self.path, "rb") as stream:
      content = _Cursor(stream, array.start).take(array.count * dtype.itemsize)
      return np.frombuffer(content, dtype)

  def rows(self, name: str, start: int, stop: int) -> np.ndarray:
    """Rows of a tensor [R, C], dequantised; a vector is one row.

    Raises:
      UserError: if the file ends early, or is stored in a way that the `gguf`
        package cannot dequantise.
    """
    tensor = self.tensors[name]
    width = tensor.row_bytes
    with _reading(self.path), open(self.path, "rb") as stream:
      stream.seek(tensor.start + start * width)
      content = stream.read((stop - start) * width)
      if len(content) < (stop - start) * width:
        raise EOFError(f"it ends inside the tensor {name}")
    stored = np.frombuffer(content, np.uint8).reshape(stop - start, width)
    if tensor.kind in _PLAIN:
      return stored.view(tensor.dtype)
    try:
      return gguf.quants.dequantize(stored, tensor.kind)
    except NotImplementedError as error:
      raise UserError(
          f"{self.path} holds {name} as {tensor.kind.name}, which the `gguf` "
          "package cannot dequantise: take another quantisation, such as "
          "Q8_0.") from error

  def _array(self, key: str, texts: bool) -> _Array:
    value = self._metadata.get(key)
    if not isinstance(value, _Array) or (value.kind == _Kind.STRING) != texts:
      raise UserError(
          f"{self.path} has {key} as {_word(value)}, where an array of "
          f"{'texts' if texts else 'numbers'} is needed: convert the model "
          "again with a current llama.cpp.")
    return value


def _word(value) -> str:
  return {"_Array": "an array", "NoneType": "nothing"}.get(
      type(value).__name__, type(value).__name__)


@contextlib.contextmanager
def _reading(path: str):
  """What bytes that lie cause, as one sentence."""
  try:
    yield
  except OSError as error:
    raise UserError(
        f"cannot read {path}: {error.strerror}; give the path of a GGUF file."
    ) from error
  except (EOFError, ValueError, KeyError, struct.error) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(
        f"{path} is not a whole GGUF file ({reason}): copy it again from its "
        "source.") from error


class _Cursor:
  """A place in the header, beyond whose end nothing is taken."""

  def __init__(self, stream, position: int = 0):
    self._stream = stream
    self.file_size = os.fstat(stream.fileno()).st_size
    self._end = min(self.file_size, _LARGEST_HEADER)
    self.position = position
    stream.seek(position)

  def skip(self, count: int) -> None:
    """Goes `count` bytes on."""
    self._check(count)
    self._stream.seek(self.position)

  def take(self, count: int) -> bytes:
    """The next bytes."""
    self._check(count)
    content = self._stream.read(count)
    if len(content) < count:  # the file became shorter meanwhile
      raise EOFError("it ends inside its header")
    return content

  def number(self, kind: gguf.GGUFValueType):
    """The next number."""
    dtype = np.dtype(_NUMBERS[kind])
    return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

  def count(self) -> int:
    """The next 64-bit length or count."""
    return struct.unpack("<Q", self.take(8))[0]

  def text(self) -> str:
    """The next text."""
    return self.take(self.count()).decode("utf-8")

  def _check(self, count: int) -> None:
    if count > self._end - self.position:
      raise EOFError(
          f"it says that {count} bytes follow byte {self.position}, but its "
          f"header ends before byte {self._end}")
    self.position += count


def _read_start(cursor: _Cursor) -> tuple[int, int]:
  """How many tensors and keys there are, past the magic and the version."""
  if cursor.take(4) != b"GGUF":
    raise ValueError("it does not begin with the letters GGUF")
  version = cursor.number(_Kind.UINT32)
  if version not in (2, 3):
    raise ValueError(
        "its numbers are big-endian" if version & 0xFFFF == 0
        else f"its version is {version}, and 2 and 3 are known")
  tensors, keys = cursor.count(), cursor.count()
  if max(tensors, keys) > _MOST_NAMES:
    raise ValueError(f"it says that it has {tensors} tensors and {keys} keys")
  return tensors, keys


def _read_metadata(cursor: _Cursor, count: int) -> dict:
  metadata = {}
  for _ in range(count):
    key = cursor.text()
    if key in metadata:
      raise ValueError(f"it has the key {key} twice")
    metadata[key] = _read_value(cursor)
  return metadata


def _read_value(cursor: _Cursor):
  kind = _Kind(cursor.number(_Kind.UINT32))
  if kind == _Kind.STRING:
    return cursor.text()
  if kind == _Kind.FLOAT32:  # 1e-5, not the double nearest to it in float32
    return float(str(np.float32(cursor.number(kind))))
  if kind != _Kind.ARRAY:
    return cursor.number(kind)
  kind = _Kind(cursor.number(_Kind.UINT32))
  count = cursor.count()
  array = _Array(kind, count, cursor.position)
  if kind == _Kind.ARRAY:
    raise ValueError("it has arrays of arrays")
  if kind != _Kind.STRING:
    cursor.skip(count * np.dtype(_NUMBERS[kind]).itemsize)
    return array
  for _ in range(count):
    cursor.skip(cursor.count())
  return array


def _read_tensors(
    cursor: _Cursor, count: int, alignment: int
) -> dict[str, Tensor]:
  """The table of tensors, each of which lies in the file for itself."""
  if type(alignment) is not int or alignment <= 0 or alignment % 8:
    raise ValueError(f"its alignment is {alignment}")
  tensors = {}
  for _ in range(count):
    name = cursor.text()
    if name in tensors:
      raise ValueError(f"it has the tensor {name} twice")
    tensors[name] = _read_tensor(cursor, name)
  begin = -(-cursor.position // alignment) * alignment
  tensors = {
      name: dataclasses.replace(tensor, start=begin + tensor.start)
      for name, tensor in tensors.items()}
  free = begin
  for name, tensor in sorted(tensors.items(), key=lambda t: t[1].start):
    if tensor.start < free:
      raise ValueError(f"the tensor {name} lies over another")
    free = tensor.start + tensor.size
    if free > cursor.file_size:
      raise EOFError(
          f"the tensor {name} ends at byte {free}, and the file at byte "
          f"{cursor.file_size}")
  return tensors


def _read_tensor(cursor: _Cursor, name: str) -> Tensor:
  """One row of the table; `start` still counts from the first tensor."""
  axes = cursor.number(_Kind.UINT32)
  if not 1 <= axes <= _MOST_AXES:
    raise ValueError(f"the tensor {name} has {axes} axes")
  shape = tuple(cursor.count() for _ in range(axes))[::-1]
  kind = _Quantization(cursor.number(_Kind.UINT32))
  start = cursor.count()
  if min(shape) < 1 or shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
    raise ValueError(
        f"the tensor {name} of shape {shape} cannot be stored as {kind.name}")
  return Tensor(shape, kind, start)
