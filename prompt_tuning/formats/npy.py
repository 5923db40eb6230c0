"""Prompts (and embedding tables) as `.npy`: read with suspicion, written whole.

The header of a file says how much memory to take; here it is held against the
size of the file before any is taken, and pickled objects are never read. Files
of the original have no suffix, and may hold bfloat16 under numpy's opaque type
`|V2`; both are read.
"""

import io
import math
import os
import stat
from typing import BinaryIO

import ml_dtypes
import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.formats import write_whole

# A prompt's header takes 128 bytes; a long one can only be an attack on the
# parser (numpy's own limit is the same).
_LONGEST_HEADER = 10_000
_PREFIX = {(1, 0): 10, (2, 0): 12}  # version: bytes before the header's text


def read(
    path: str | os.PathLike, shape: tuple[int, ...] | None = None
) -> np.ndarray:
  """Reads a float array from a `.npy` file of any name.

  Args:
    path: a file in version 1 or 2 of the format with float16, float32, float64
      or bfloat16 values.
    shape: the exact shape that is needed; without it the array must have the
      two dimensions of a prompt `[P, H]` or of an embedding table `[V, H]`.

  Returns:
    The array in float32, in C order.

  Raises:
    UserError: if the file is absent, damaged, holds more or less than its
      header says, pickled objects, other types, NaN or infinite values, or an
      array of another shape.
  """
  path = os.fspath(path)
  try:
    with open(path, "rb") as file:
      status = os.fstat(file.fileno())
      if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path!r} is not a regular file: name a .npy file")
      stored, fortran_order, dtype = _header(file, path, status.st_size)
      dtype = _float_type(dtype, path)
      _check_shape(stored, shape, path)
      _check_size(stored, dtype, status.st_size - file.tell(), path)
      content = file.read()
  except IsADirectoryError as error:
    raise UserError(
        f"{path!r} is a folder: name the .npy file in it") from error
  except OSError as error:
    raise UserError(
        f"cannot read {path!r}: {error.strerror}; check the path") from error
  # The file can have shrunk since it was measured.
  _check_size(stored, dtype, len(content), path)
  values = np.frombuffer(content, dtype).reshape(
      stored, order="F" if fortran_order else "C")
  with np.errstate(over="ignore"):  # float64 too large: refused below.
    values = np.array(values, np.float32, order="C")
  _check_finite(values, path)
  return values


def write(path: str | os.PathLike, array) -> None:
  """Writes an array in float32 under exactly this name, whole or not at all.

  float32 whatever the array is in: numpy cannot name bfloat16, and saves it as
  bytes without a meaning (`|V2`).

  Args:
    path: the file; no suffix is added.
    array: anything that numpy takes for an array of floats.

  Raises:
    UserError: if the file cannot be written, or values are NaN or infinite.
  """
  values = np.asarray(array).astype(np.float32, order="C")
  _check_finite(values, os.fspath(path))
  buffer = io.BytesIO()
  np.lib.format.write_array(buffer, values, (1, 0), allow_pickle=False)
  write_whole(path, buffer.getvalue())


def _header(
    file: BinaryIO, path: str, size: int
) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Shape, Fortran order and type, of a header that fits into the file."""
  try:
    version = np.lib.format.read_magic(file)
  except ValueError as error:
    raise UserError(
        f"{path!r} is not a .npy file, or is cut off in its first bytes: write "
        "it again with numpy.save") from error
  if version not in _PREFIX:
    raise UserError(
        f"{path!r} is in version {version} of the .npy format, which only "
        "tables of named fields need: save a plain array of floats")
  prefix = _PREFIX[version]
  length = int.from_bytes(file.read(prefix - 8), "little")
  if prefix + length > size or length > _LONGEST_HEADER:
    raise UserError(
        f"{path!r} claims a header of {length} bytes, and has {size} bytes in "
        f"all (at most {_LONGEST_HEADER} are taken): it is damaged, copy it "
        "again from its source")
  file.seek(8)
  parse = (np.lib.format.read_array_header_1_0 if version == (1, 0)
           else np.lib.format.read_array_header_2_0)
  try:
    shape, fortran_order, dtype = parse(file, max_header_size=_LONGEST_HEADER)
  # The header is a Python literal: besides ValueError, the parser and its
  # tokenizer end in errors of memory, recursion, syntax, and their own.
  except Exception as error:
    raise UserError(
        f"{path!r} has a damaged header: copy it again from its source, or "
        "write it again with numpy.save") from error
  if not all(type(n) is int and n >= 0 for n in shape):
    raise UserError(
        f"{path!r} claims the impossible shape {shape}: it is damaged, copy it "
        "again from its source")
  return shape, fortran_order, dtype


def _float_type(dtype: np.dtype, path: str) -> np.dtype:
  """The type to read the bytes as; refuses all but floating point."""
  if dtype.hasobject:
    raise UserError(
        f"{path!r} holds pickled Python objects, which can run code and are "
        "never read: save a plain float32 array with numpy.save")
  if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
    return np.dtype(ml_dtypes.bfloat16)
  if dtype.kind != "f" or dtype.itemsize > 8:
    raise UserError(
        f"{path!r} holds values of type {dtype}: save them as float32")
  return dtype


def _check_shape(
    stored: tuple[int, ...], needed: tuple[int, ...] | None, path: str
) -> None:
  """Refuses an array that is not the one that is needed."""
  if needed is not None:
    if stored != tuple(needed):
      raise UserError(
          f"{path!r} holds an array of shape {stored}, and {tuple(needed)} is "
          "needed here: take a file that was made for this model, or set the "
          "prompt's length and the model's width to those of the file")
  elif len(stored) != 2 or not all(stored):
    raise UserError(
        f"{path!r} holds an array of shape {stored}, and a prompt has the "
        "shape [P, H] (length, model width), neither of them 0: save it with "
        "these two dimensions")


def _check_size(
    shape: tuple[int, ...], dtype: np.dtype, present: int, path: str
) -> None:
  """Refuses a file that holds less or more than its header claims."""
  claimed = math.prod(shape) * dtype.itemsize
  if present < claimed:
    raise UserError(
        f"{path!r} is cut off: its header claims shape {shape} in {dtype}, "
        f"{claimed} bytes, and {present} follow: copy it again from its source")
  if present > claimed:
    raise UserError(
        f"{path!r} has {present - claimed} bytes after the array of shape "
        f"{shape} in {dtype} that its header claims: it is damaged or holds "
        "something else, copy it again from its source")


def _check_finite(values: np.ndarray, path: str) -> None:
  """Refuses NaN and infinity: one of them makes every logit NaN."""
  bad = values.size - np.count_nonzero(np.isfinite(values))
  if bad:
    raise UserError(
        f"{bad} of the {values.size} values for {path!r}, shape "
        f"{values.shape}, are NaN or infinite: the training that made them "
        "diverged, take an earlier checkpoint or a lower learning rate")
