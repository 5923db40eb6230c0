"""Loads base weights: any format, straight to their dtype and sharding.

    params = base.load_base("…/t5_1_1_small/checkpoint_1000000", abstract)

`abstract` says what the model wants (path, shape, dtype, sharding); a reader
(`t5x`, `hugging_face`) says what the file has. One array at a time, each block
that is read is converted into the buffers of the devices that want it, so that
the host holds the loaded weights and little more.
"""

from collections.abc import Mapping
import difflib
import logging
import math
import os
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import checkpoints, errors
from prompt_tuning.checkpoints import gguf, hugging_face, t5x
from prompt_tuning.formats import card
from prompt_tuning.models import quantized

EMBEDDING = "token_embedder/embedding"

# What a JAX CPU device needs to take a NumPy buffer as its own, uncopied.
_ALIGNMENT = 64

_Region = tuple[tuple[int, int], ...]  # (start, stop) per axis


def open_base(path: str | os.PathLike) -> checkpoints.BaseWeights:
  """Opens base weights of any kind that is read here.

  Args:
    path: the folder of one step of a T5X checkpoint (its own or orbax's
      layout), a Hugging Face directory with safetensors of a family in
      `families`, or a GGUF file of a Llama.

  Returns:
    A reader: `arrays` lists what there is, nothing is loaded yet.

  Raises:
    UserError: if there is no such checkpoint, or it is damaged.
  """
  path = os.fspath(path)
  if "://" in path:
    raise errors.UserError(
        f"{path} is on another machine: copy the folder here and give its "
        "local path.")
  if gguf.is_gguf(path):
    return gguf.GgufWeights(path)
  if not os.path.isdir(path):
    raise errors.UserError(
        f"There is no checkpoint folder {path}: give the folder of a T5X "
        "checkpoint or of a Hugging Face model, or a .gguf file.")
  with checkpoints.reading(path):
    if t5x.is_t5x(path):
      return t5x.T5XCheckpoint(path)
  if hugging_face.is_hugging_face(path):
    return hugging_face.HuggingFaceWeights(path)
  raise errors.UserError(
      f"{path} is no checkpoint: a T5X checkpoint has a file `checkpoint` or a "
      "folder `state`, a Hugging Face model a config.json with "
      "model.safetensors.")


def load_base(
    path: str | os.PathLike, abstract: Mapping, dtype=None,
    partial: bool = False,
) -> dict:
  """Loads the base model's parameters.

  Args:
    path: see `open_base`.
    abstract: nested dict of `jax.ShapeDtypeStruct`, all of the model's
      parameters but those that are not in the file: layers of the file that
      it lacks are an error, other arrays a warning. Leaves may differ in
      dtype; a `quantized.Int8` of shapes is quantised while it is read. A leaf
      with a sharding is loaded to it, one without to JAX's default device.
      Stacked layers (`encoder/layers/…`, leading axis L) are put together from
      the file's `layers_0`, `layers_1`, ….
    dtype: for all floating parameters; each leaf's own if None.
    partial: whether the file may well have more than is wanted, such as a
      head; there is no warning then.

  Returns:
    The same tree of `jax.Array`.

  Raises:
    UserError: if parameters are missing, have another shape, if the file has
      layers that the model has not, or is damaged.
  """
  weights = open_base(path)
  wanted = flax.traverse_util.flatten_dict(abstract, sep="/")
  sources = _match(weights, wanted, partial)
  loaded = {}
  # Largest first: what a large array needs besides its result while it is
  # read does not come on top of all the others.
  for name in sorted(wanted, key=lambda n: -math.prod(wanted[n].shape)):
    leaf = wanted[name]
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    if isinstance(leaf, quantized.Int8):
      loaded[name] = _load_int8(weights, sources[name], leaf, name)
    else:
      loaded[name] = _load(
          weights, sources[name], leaf, dtype if dtype and floating else None)
  return flax.traverse_util.unflatten_dict(
      {name: loaded[name] for name in wanted}, sep="/")


def read_variable(
    checkpoint_path: str | os.PathLike, variable_path: str, restore_dtype=None
) -> np.ndarray:
  """Reads one array.

  Args:
    checkpoint_path: see `open_base`.
    variable_path: such as `token_embedder/embedding`; a leading `target/` or
      `/` may be there.
    restore_dtype: what to convert to; the file's own dtype if None.

  Returns:
    The array.

  Raises:
    UserError: if there is no such checkpoint or no such array in it.
  """
  weights = open_base(checkpoint_path)
  name = re.sub(r"^(target)?/", "", variable_path)
  if name not in weights.arrays:
    near = difflib.get_close_matches(name, weights.arrays, 3, 0.0)
    raise errors.UserError(
        f"{weights.path} has no array {variable_path!r}: the nearest names "
        f"are {', '.join(near)}.")
  stored = weights.arrays[name]
  out = _empty(stored.shape, restore_dtype or stored.dtype)
  weights.read_into(name, out)
  return out


def read_embedding_table(path: str | os.PathLike, dtype=None) -> np.ndarray:
  """The embedding table [V, H]; in the file's own dtype if `dtype` is None."""
  return read_variable(path, EMBEDDING, dtype)


def fingerprint(path: str | os.PathLike) -> str:
  """`formats.card.fingerprint` of a checkpoint's embedding table.

  It is taken over bfloat16, so only that much of the table is held, and it is
  the same whatever the format or dtype of the file.
  """
  return card.fingerprint(read_embedding_table(path, jnp.bfloat16))


# ---------------------------------------- what is wanted against what is there


def _match(weights, wanted: Mapping, partial: bool) -> dict[str, list[str]]:
  """For each wanted path, the file's arrays it is made of; checks them all."""
  sources = {
      name: _sources(weights.arrays, name, leaf)
      for name, leaf in wanted.items()}
  used = {part for parts in sources.values() for part in parts}
  missing = sorted(used - set(weights.arrays))
  unused = sorted(set(weights.arrays) - used)
  _refuse_extra_layers(weights, used, unused)
  if missing:
    raise errors.UserError(
        f"{weights.path} lacks {len(missing)} of the model's parameters "
        f"({checkpoints.names(missing)}): is the gin file of the model the "
        "right one for this checkpoint?")
  _refuse_other_shapes(weights, wanted, sources)
  strange = [n for n in unused if "prompt" not in n] + list(weights.unknown)
  if strange and not partial:
    logging.warning(
        "%s has %d arrays that the model does not use: %s.", weights.path,
        len(strange), checkpoints.names(strange))
  return sources


def _sources(arrays: Mapping, name: str, leaf) -> list[str]:
  if name in arrays or "/layers/" not in name:
    return [name]
  return [name.replace("/layers/", f"/layers_{i}/", 1)
          for i in range(leaf.shape[0])]


def _refuse_extra_layers(weights, used: set[str], unused: list[str]):
  def layers(names):
    found = (re.match(r"(encoder|decoder)/layers_\d+(?=/)", n) for n in names)
    return {match[0] for match in found if match}

  if extra := sorted(layers(unused) - layers(used)):
    names = ("NUM_ENCODER_LAYERS and NUM_DECODER_LAYERS"
             if weights.family in ("t5", "bart") else "NUM_LAYERS")
    raise errors.UserError(
        f"{weights.path} has layers that the model has not "
        f"({checkpoints.names(extra)}): set {names}, or take the gin file of "
        "the checkpoint's size.")


def _refuse_other_shapes(weights, wanted: Mapping, sources: Mapping):
  wrong = []
  for name, parts in sources.items():
    shape = tuple(wanted[name].shape)
    if parts != [name]:
      shape = shape[1:]
    wrong += [
        f"{part} is {weights.arrays[part].shape} in the checkpoint and "
        f"{shape} in the model"
        for part in parts if weights.arrays[part].shape != shape]
  if wrong:
    raise errors.UserError(
        f"{weights.path} is of another size than the model: "
        f"{checkpoints.names(wrong)}; take the gin file of the checkpoint's "
        "size.")


# --------------------------------------------------------------------- loading


def _load(weights, parts: list[str], leaf, dtype) -> jax.Array:
  """Loads one array in its leaf's dtype or another."""
  return _place(
      _blocks(weights, parts, len(leaf.shape)), leaf, dtype or leaf.dtype)


def _load_int8(
    weights, parts: list[str], leaf: quantized.Int8, name: str
) -> quantized.Int8:
  """Reads an array twice, for its scales and for its values.

  The alternative is to hold it in the file's dtype, and a model's largest
  array may be a tenth of it.
  """
  axis, rank = quantized.axis_of(name), len(leaf.shape)
  scale = quantized.scales(
      _blocks(weights, parts, rank), leaf.scale.shape, axis)
  values = _place(
      quantized.rounded(_blocks(weights, parts, rank), scale, axis),
      leaf.values, leaf.values.dtype)
  everything = tuple(slice(0, n) for n in scale.shape)
  return quantized.Int8(
      values, _place([(everything, scale)], leaf.scale, scale.dtype))


def _place(blocks, leaf, dtype) -> jax.Array:
  """Makes an array of blocks, each device's share in a buffer of its own."""
  sharding = getattr(leaf, "sharding", None)
  shape = tuple(leaf.shape)
  regions = _regions(sharding, shape)
  buffers = {
      region: _empty([b - a for a, b in region], dtype) for region in regions}
  for index, block in blocks:
    for region, buffer in buffers.items():
      _copy_overlap(index, block, region, buffer)
  shares = [
      jax.device_put(buffers[region], device)
      for region, devices in regions.items() for device in devices]
  # The next array must not be read while this one still waits on the host.
  jax.block_until_ready(shares)
  if sharding is None:
    return shares[0]
  return jax.make_array_from_single_device_arrays(shape, sharding, shares)


def _regions(sharding, shape: tuple[int, ...]) -> dict[_Region, list]:
  """Which part of the array goes to which of this process's devices."""
  if sharding is None:
    return {tuple((0, n) for n in shape): [None]}
  regions = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    region = tuple(s.indices(n)[:2] for s, n in zip(index, shape))
    regions.setdefault(region, []).append(device)
  return regions


def _blocks(weights, parts: list[str], rank: int):
  """Blocks of the array that `parts` make, stacked on a new first axis."""
  for i, part in enumerate(parts):
    for index, block in weights.blocks(part):
      if len(index) < rank:
        index, block = (slice(i, i + 1), *index), block[None]
      yield index, block


def _copy_overlap(index, block: np.ndarray, region: _Region, buffer):
  """Copies what of `block`, at `index`, lies in `region` to its buffer."""
  theirs, ours = [], []
  for at, (start, stop) in zip(index, region):
    low, high = max(at.start, start), min(at.stop, stop)
    if low >= high:
      return
    theirs.append(slice(low - at.start, high - at.start))
    ours.append(slice(low - start, high - start))
  buffer[tuple(ours)] = block[tuple(theirs)]


def _empty(shape, dtype) -> np.ndarray:
  """An uninitialised array that begins at a multiple of `_ALIGNMENT`."""
  dtype = np.dtype(dtype)
  size = math.prod(shape) * dtype.itemsize
  try:
    memory = np.empty(size + _ALIGNMENT, np.uint8)
  except MemoryError as error:
    raise errors.UserError(
        f"An array of shape {tuple(shape)} and dtype {dtype} does not fit in "
        "this machine's memory: load it in bfloat16, or shard it.") from error
  offset = -memory.ctypes.data % _ALIGNMENT
  return memory[offset:offset + size].view(dtype).reshape(shape)
