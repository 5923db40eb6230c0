"""Writes arrays as a checkpoint in T5X's own layout, to be read by T5X.

`checkpoints.t5x` reads it and says what the layout is. T5X restores such a
checkpoint partially: what it lacks must come from elsewhere (its
`fallback_checkpoint`, or the state the model was initialised with).
"""

from collections.abc import Iterable
import gzip
import json
import os

import flax
import ml_dtypes
import numpy as np

from prompt_tuning import formats

_VERSION = 3  # of T5X's layout
_COMPRESSOR = {"id": "gzip", "level": 1}
# dtype: zarr's name of it, which for bfloat16 is tensorstore's own.
_DTYPES = {
    "float32": ("<f4", np.float32),
    "bfloat16": ("bfloat16", ml_dtypes.bfloat16)}


def write(path: str | os.PathLike, variable: str, array, step: int = 0) -> None:
  """Writes a checkpoint of one variable, whole or not at all.

  Args:
    path: the folder to make, such as `…/checkpoint_0`.
    variable: its path without `target`: `encoder/prompt/prompt/prompt`.
    array: of two or more dimensions; written in float32.
    step: the training step that the checkpoint says.

  Raises:
    UserError: if `path` exists or cannot be written.
  """
  write_all(path, [(variable, array)], step)


def write_all(
    path: str | os.PathLike, arrays: Iterable[tuple[str, np.ndarray]],
    step: int = 0, dtype: str = "float32",
) -> None:
  """Writes a checkpoint of many variables, whole or not at all.

  Args:
    path: the folder to make, such as `…/checkpoint_1100000`.
    arrays: (path without `target`, values); taken and written one by one, so
      that a generator holds no more than the largest.
    step: the training step that the checkpoint says.
    dtype: of all values in it, "float32" or "bfloat16".

  Raises:
    UserError: if `path` exists or cannot be written.
  """
  target = {}
  with formats.whole_folder(path) as folder:
    for variable, values in arrays:
      target[variable] = _write_array(folder, variable, values, dtype)
    index = {"version": _VERSION, "optimizer": {
        "target": flax.traverse_util.unflatten_dict(target, sep="/"),
        # Nothing for the optimizer: T5X stumbles over an empty tree.
        "state": {"step": np.int32(step)}}}
    formats.write_whole(
        os.path.join(folder, "checkpoint"),
        flax.serialization.msgpack_serialize(index))


def _write_array(folder: str, variable: str, array, dtype: str) -> dict:
  """Writes a zarr folder of one chunk; gives what the index says of it."""
  dtype_name, kind = _DTYPES[dtype]
  values = np.asarray(array, dtype=kind, order="C")
  name = "target." + variable.replace("/", ".")
  metadata = {
      "chunks": list(values.shape), "compressor": _COMPRESSOR,
      "dtype": dtype_name, "shape": list(values.shape)}
  header = metadata | {
      "fill_value": None, "filters": None, "order": "C", "zarr_format": 2}
  os.mkdir(os.path.join(folder, name))
  formats.write_whole(
      os.path.join(folder, name, ".zarray"), json.dumps(header).encode())
  # The chunk's name has a 0 for each axis.
  chunk = os.path.join(folder, name, ".".join("0" * values.ndim) or "0")
  with formats.whole_file(chunk) as file, gzip.GzipFile(
      fileobj=file, mode="wb", compresslevel=1, mtime=0) as stream:
    stream.write(values.reshape(-1).view(np.uint8))
  return {
      "driver": "zarr", "metadata": metadata,
      "kvstore": {"driver": "gfile", "path": name}}
