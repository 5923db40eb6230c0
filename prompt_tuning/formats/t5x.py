"""Writes one array as a checkpoint in T5X's own layout, to be read by T5X.

`checkpoints.t5x` reads it and says what the layout is. T5X restores such a
checkpoint partially: what it lacks must come from elsewhere (its
`fallback_checkpoint`, or the state the model was initialised with).
"""

import gzip
import json
import os

import flax
import numpy as np

from prompt_tuning import formats

_VERSION = 3  # of T5X's layout
_COMPRESSOR = {"id": "gzip", "level": 1}


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
  values = np.ascontiguousarray(array, dtype="<f4")
  name = "target." + variable.replace("/", ".")
  metadata = {
      "chunks": list(values.shape), "compressor": _COMPRESSOR,
      "dtype": "<f4", "shape": list(values.shape)}
  reference = {
      "driver": "zarr", "metadata": metadata,
      "kvstore": {"driver": "gfile", "path": name}}
  target = flax.traverse_util.unflatten_dict({variable: reference}, sep="/")
  index = {"version": _VERSION, "optimizer": {
      "target": target, "state": {"step": np.int32(step), "param_states": {}}}}
  header = metadata | {
      "fill_value": None, "filters": None, "order": "C", "zarr_format": 2}
  with formats.whole_folder(path) as folder:
    os.mkdir(os.path.join(folder, name))
    for file, content in (
        ("checkpoint", flax.serialization.msgpack_serialize(index)),
        (os.path.join(name, ".zarray"), json.dumps(header).encode()),
        # The one chunk; its name has a 0 for each axis.
        (os.path.join(name, ".".join("0" * values.ndim)),
         gzip.compress(values.tobytes(), 1, mtime=0))):
      formats.write_whole(os.path.join(folder, file), content)
