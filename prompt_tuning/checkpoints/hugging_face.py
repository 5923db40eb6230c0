"""Reads and writes Hugging Face's directories: config.json + safetensors.

What config.json means and where each weight lies is the family's to say
(`families`); here is what they share. Nothing in a directory is ever executed:
pickles are refused, and `auto_map`, which names code beside the weights, is
not looked at.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import types
from typing import Any

import flax
import jax
import numpy as np

from prompt_tuning import checkpoints, errors, formats
from prompt_tuning.checkpoints import families, safetensors_files
from prompt_tuning.checkpoints.families import config_json
from prompt_tuning.checkpoints.families import weights as weights_lib
from prompt_tuning.checkpoints.safetensors_files import Tensor
from prompt_tuning.models import quantized

_EMBEDDING = "token_embedder/embedding"

_SINGLE = "model.safetensors"
_INDEX = f"{_SINGLE}.index.json"

# What belongs to a model besides its weights, as far as it is data.
_COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "spiece.model",
    "vocab.json", "merges.txt", "chat_template.jinja",
    "generation_config.json")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

# A map lists the parameters of so many layers before it is known that they are
# in the files.
_MOST_LAYERS = 1000

# Fields of a `Config` that say how a model is run, not which it is.
_RUNNING = ("dtype", "dropout_rate", "scan_layers", "remat", "fused_attention")

# What None means in a `Config`, for the fields in which it means a size.
_DEFAULTS = {
    "num_kv_heads": lambda config: config.num_heads,
    "rotary_dim": lambda config: config.head_dim,
}


class HuggingFaceWeights(checkpoints.BaseWeights):
  """A directory as `save_pretrained` writes it, of any known family.

  Attributes:
    family: the first of the family's `MODEL_TYPES`, such as "llama".
    config: the keywords of the family's `Config`.
    pieces: by our path, where in Hugging Face's tensors each parameter lies.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens the directory `path`.

    Args:
      path: holds config.json and model.safetensors, or the shards that
        model.safetensors.index.json lists.

    Raises:
      UserError: if a file is missing or damaged, is of an unknown family, or
        the weights are not those that config.json describes.
    """
    self.path = os.fspath(path)
    file = os.path.join(self.path, "config.json")
    with checkpoints.reading(file):
      content = _read_json(file)
      family = families.of_config(content, file)
      self.config = family.read_config(config_json.ConfigJson(file, content))
    self.family = family.MODEL_TYPES[0]
    _refuse_quantised(file, content)
    tensors = _list_tensors(self.path, family)
    _refuse_many_layers(file, self.config, len(tensors))
    self.pieces = family.weight_map(family.Config(**self.config), content)
    self._tensors, self.unknown = _matched(
        self.path, family, self.pieces, tensors)
    self.arrays = {
        name: jax.ShapeDtypeStruct(
            piece.shape, safetensors_files.DTYPES[tensor.dtype]
            if (tensor := self._tensors[name]) else np.dtype(np.float32))
        for name, piece in self.pieces.items()}

  def blocks(self, path: str) -> Iterator[checkpoints.Block]:
    """See `BaseWeights.blocks`."""
    piece, tensor = self.pieces[path], self._tensors[path]
    if tensor is None:  # which the family has as 0
      zeros = np.zeros(piece.shape, np.float32)
      yield tuple(slice(0, n) for n in zeros.shape), zeros
      return
    for index, block in safetensors_files.blocks(tensor, piece):
      if piece.transposed:
        index, block = index[::-1], block.T
      yield index, block


def is_hugging_face(path: str | os.PathLike) -> bool:
  """Whether the folder `path` looks like a Hugging Face model."""
  return os.path.isfile(os.path.join(path, "config.json"))


# --------------------------------------------------------------------- reading


def _read_json(file: str) -> dict:
  with checkpoints.reading(file), open(file, encoding="utf-8") as stream:
    content = json.load(stream)
    if not isinstance(content, dict):
      raise ValueError("it is not a JSON object")
    return content


def _list_tensors(path: str, family: types.ModuleType) -> dict[str, Tensor]:
  """All tensors of the directory, by Hugging Face's names."""
  tensors = {}
  for file, wanted in _files(path, family).items():
    held = safetensors_files.tensors(file)
    if lacking := sorted(wanted - set(held)):
      raise errors.UserError(
          f"{file} lacks {checkpoints.names(lacking)}, which "
          "model.safetensors.index.json says it has: copy the files again.")
    tensors |= {name: held[name] for name in wanted or held}
  return tensors


def _files(path: str, family: types.ModuleType) -> dict[str, set[str]]:
  """The safetensors files of `path`, and which names the index expects."""
  single = os.path.join(path, _SINGLE)
  if os.path.isfile(single):
    return {single: set()}
  index = os.path.join(path, _INDEX)
  if not os.path.isfile(index):
    raise errors.UserError(_no_safetensors(path, family))
  files = collections.defaultdict(set)
  with checkpoints.reading(index):
    for name, file in _read_json(index)["weight_map"].items():
      if os.path.basename(file) != file:
        raise ValueError(f"it refers to a file {file!r}")
      files[os.path.join(path, file)].add(name)
  return dict(files)


def _no_safetensors(path: str, family: types.ModuleType) -> str:
  if any(os.path.exists(os.path.join(path, name))
         for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")):
    how = (
        f"transformers is installed: {family.AUTO_CLASS}.from_pretrained("
        f"{path!r}).save_pretrained({path + '-safetensors'!r})")
    if family is families.codesage:  # transformers would run code beside it
        pickle = os.path.join(path, "pytorch_model.bin")
        file = os.path.join(path, "model.safetensors")
        how = (
            "torch is installed: safetensors.torch.save_file("
            f"torch.load({pickle!r}, weights_only=True), {file!r})")
    return (
        f"{path} has its weights only in pytorch_model.bin, a pickle, which is "
        f"never read; convert it once where {how}.")
  return (f"{path} has no weights: neither model.safetensors nor "
          "model.safetensors.index.json is there; copy them beside "
          "config.json.")


# ------------------------------------ what is there against what the family has


def _refuse_quantised(file: str, content: Mapping):
  if content.get("quantization_config"):
    raise errors.UserError(
        f"{file} has a quantization_config: quantised weights are not read, "
        "give the model in float32 or bfloat16.")


def _refuse_many_layers(file: str, config: Mapping, tensors: int):
  """A map is as long as config.json says: that must not be just anything."""
  layers = sum(
      size for name, size in config.items() if name.endswith("_layers"))
  if layers > max(tensors, _MOST_LAYERS):
    raise errors.UserError(
        f"{file} describes {layers} layers, but there are only {tensors} "
        "tensors: copy the files again.")


def _matched(
    path: str, family: types.ModuleType, pieces: weights_lib.Map,
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor | None], tuple[str, ...]]:
  """The tensor of each piece, checked; and the names that are of no use.

  T5's directories often carry heads of other tasks, which are only told of;
  in the others, a tensor more means that config.json is of another model.
  """
  found = {ours: _find(tensors, piece, family.PREFIX)
           for ours, piece in pieces.items()}
  missing = {
      pieces[ours].names[0]: pieces[ours].stored
      for ours, tensor in found.items()
      if tensor is None and not pieces[ours].zero_if_absent}
  if missing:
    raise errors.UserError(_says_missing(path, family, missing))
  for ours, tensor in found.items():
    if tensor is None:
      continue
    _check(tensor, pieces[ours], family, ours == _EMBEDDING)
  expected = {
      alias for piece in pieces.values() for name in piece.names
      for alias in (name, name.removeprefix(family.PREFIX))}
  extra = tuple(sorted(
      name for name in set(tensors) - expected
      if not (family.IGNORED and family.IGNORED.fullmatch(name))))
  if extra and family is not families.t5:
    raise errors.UserError(
        f"{tensors[extra[0]].file} has {checkpoints.names(list(extra))}, "
        f"which a {family.NAME} of its config.json has not: correct "
        "config.json, or save the model again with "
        f"{family.AUTO_CLASS}.")
  return found, extra


def _find(
    tensors: Mapping[str, Tensor], piece: weights_lib.Piece, prefix: str
) -> Tensor | None:
  for name in piece.names:
    for alias in (name, name.removeprefix(prefix)):
      if alias in tensors:
        return tensors[alias]
  return None


def _says_missing(
    path: str, family: types.ModuleType, missing: Mapping[str, tuple]
) -> str:
  name, stored = next(iter(missing.items()))
  more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
  return (
      f"{path} lacks {name} {list(stored)}{more}, which a {family.NAME} of its "
      "config.json has: copy the files again, or save the model again with "
      f"{family.AUTO_CLASS}.")


def _check(
    tensor: Tensor, piece: weights_lib.Piece, family: types.ModuleType,
    is_table: bool,
):
  """Only floats of the shape that config.json gives are taken for weights."""
  if tensor.dtype not in safetensors_files.DTYPES:
    raise errors.UserError(
        f"{tensor.file} holds {tensor.name} as {tensor.dtype} of shape "
        f"{tensor.shape}: quantised weights are not read, give the model in "
        "float32 or bfloat16.")
  if tensor.shape == piece.stored:
    return
  if is_table and tensor.shape[1:] == piece.stored[1:]:
    raise errors.UserError(
        f"{os.path.dirname(tensor.file)}: config.json says vocab_size "
        f"{piece.stored[0]}, but the embedding table has {tensor.shape[0]} "
        "rows: correct config.json, or copy the files again.")
  raise errors.UserError(
      f"{tensor.file} holds {tensor.name} as {list(tensor.shape)}, but in a "
      f"{family.NAME} of its config.json it is {list(piece.stored)}: correct "
      "config.json, or copy the files again.")


# --------------------------------------------------------------------- writing


def save(
    directory: str | os.PathLike | None, params: Mapping, config: Any, dtype,
    family: str | None = None, token_ids: Mapping[str, Any] | None = None,
    max_shard_bytes: int | None = None,
    gather: Callable[[Any], np.ndarray] = np.asarray,
):
  """Writes a directory that transformers loads.

  One tensor at a time is held besides `params`.

  Args:
    directory: made if it is not there; files of these names are replaced. None
      in a process that only takes part in the gathering.
    params: nested dict of the model's parameters, layers one by one or
      stacked (`layers`, leading axis L).
    config: `Config` of a `models` file, of which `params` are; its keywords do
      where `family` is given.
    dtype: of the file, float32 or bfloat16.
    family: as `HuggingFaceWeights.family` has it; if None, the first one whose
      config.json can say `config` (a Phi-3 may thus become a Llama, with the
      same outputs).
    token_ids: entries of config.json that the weights say nothing of:
      `bos_token_id`, `eos_token_id`, `pad_token_id`. Those of a T5 are known;
      others are null if they are not given.
    max_shard_bytes: what does not fit into one file of so many bytes becomes
      several, listed in an index; a larger tensor has a file of its own. None
      is one file.
    gather: brings one array to the host.

  Raises:
    UserError: if `params` lacks a parameter, or has one that the family has
      not, such as a prompt; if the family has no such model; or if the files
      cannot be written.
  """
  dtype = np.dtype(dtype)
  written, config, content = _written(config, family)
  for head, architecture in getattr(written, "HEADS", {}).items():
    if head in params:
      content["architectures"] = [architecture]
  tensors = _by_tensor(
      written, written.weight_map(config, content), params, gather)
  shards = _shards(tensors, dtype, max_shard_bytes)
  if directory is None:
    for names in shards.values():
      safetensors_files.write(None, {n: tensors[n] for n in names}, dtype)
    return
  ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
  content = ids | content | dict(token_ids or {}) | {"torch_dtype": dtype.name}
  directory = os.fspath(directory)
  try:
    os.makedirs(directory, exist_ok=True)
  except OSError as error:
    raise errors.UserError(
        f"cannot make the folder {directory!r}: "
        f"{formats.why_not_written(error)}") from error
  for file, names in shards.items():
    safetensors_files.write(
        os.path.join(directory, file), {n: tensors[n] for n in names}, dtype)
  _write_json(os.path.join(directory, "config.json"), content)
  if len(shards) == 1:  # which readers look for first
    return
  _write_json(os.path.join(directory, _INDEX), {
      "metadata": {"total_size": sum(
          safetensors_files.size(tensors, n, dtype) for n in tensors)},
      "weight_map": {n: file for file, names in shards.items()
                     for n in names}})
  with contextlib.suppress(FileNotFoundError):
    os.remove(os.path.join(directory, _SINGLE))


def token_ids(path: str | os.PathLike) -> dict[str, int]:
  """The special tokens that a model's config.json names, if it has one."""
  file = os.path.join(path, "config.json")
  if not os.path.isfile(file):
    return {}
  with checkpoints.reading(file):
    content = _read_json(file)
  return {name: content[name] for name in _TOKEN_IDS if name in content}


def copy_companions(path: str | os.PathLike, directory: str | os.PathLike):
  """Copies the tokenizer's files and the like from one model to another."""
  for name in _COMPANIONS:
    source = os.path.join(path, name)
    if os.path.isfile(source):
      shutil.copyfile(source, os.path.join(directory, name))


def _write_json(file: str, content: Mapping):
  formats.write_whole(
      file, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _shards(
    tensors: safetensors_files.Pieces, dtype: np.dtype, limit: int | None
) -> dict[str, list[str]]:
  """Which tensors go into which file, filled in the order of their names."""
  found, left = [], 0
  for name in sorted(tensors):
    size = safetensors_files.size(tensors, name, dtype)
    if not found or (limit is not None and size > left):
      found.append([])
      left = limit or 0
    found[-1].append(name)
    left -= size
  if len(found) == 1:
    return {_SINGLE: found[0]}
  return {f"model-{i:05}-of-{len(found):05}.safetensors": names
          for i, names in enumerate(found, 1)}


def _written(config, family: str | None) -> tuple[types.ModuleType, Any, dict]:
  """The family to save as, its `Config`, and its config.json."""
  if family is not None:
    chosen = families.of_type(family, "The directory to save")
    if isinstance(config, Mapping):
      config = chosen.Config(**config)
    return chosen, config, _config_json(chosen, config)
  for chosen in families.ALL:
    with contextlib.suppress(errors.UserError):
      return chosen, config, _config_json(chosen, config)
  raise errors.UserError(
      f"No family of Hugging Face's has such a model: {config}.")


def _config_json(family: types.ModuleType, config) -> dict:
  """config.json of a model; nothing of it may be lost there."""
  if not isinstance(config, family.Config):
    raise errors.UserError(
        f"A {family.NAME}'s config.json cannot say {config!r}.")
  content = family.write_config(config)
  again = family.Config(**family.read_config(
      config_json.ConfigJson("config.json", content)))
  for field in dataclasses.fields(config):
    ours, theirs = getattr(config, field.name), getattr(again, field.name)
    if field.name in _RUNNING or ours == theirs:
      continue
    if (ours or theirs) == _DEFAULTS.get(field.name, lambda _: None)(config):
      continue
    raise errors.UserError(
        f"A {family.NAME}'s config.json cannot say {field.name} = {ours!r}: "
        "save the model as the family that it is of.")
  return content


def _by_tensor(
    family: types.ModuleType, pieces: weights_lib.Map, params: Mapping,
    gather: Callable[[Any], np.ndarray],
) -> safetensors_files.Pieces:
  """For each tensor to write, its pieces and what gives their values."""
  tensors = collections.defaultdict(list)
  for path, shape, value in _one_by_one(params):
    if path not in pieces:
      raise errors.UserError(
          f"Hugging Face's {family.NAME} has no place for the parameter {path}:"
          " save the base model's parameters alone.")
    piece = pieces.pop(path)
    if shape != piece.shape:
      raise errors.UserError(
          f"The parameter {path} is {shape}, but {piece.shape} in "
          "the model's configuration: give both of the same model.")
    tensors[piece.names[0]].append(
        (piece, functools.partial(_gathered, gather, value)))
  if pieces:
    raise errors.UserError(
        f"A {family.NAME} cannot be saved without {len(pieces)} of its "
        f"parameters ({checkpoints.names(sorted(pieces))}).")
  return tensors


def _one_by_one(params: Mapping):
  """Yields (path, shape, what gives the array), stacked layers apart."""
  for path, array in flax.traverse_util.flatten_dict(params, sep="/").items():
    shape = np.shape(array)
    if "/layers/" not in path:
      yield path, shape, functools.partial(_taken, array)
      continue
    for i in range(shape[0]):
      yield (path.replace("/layers/", f"/layers_{i}/"), shape[1:],
             functools.partial(_taken, array, i))


def _taken(array, layer: int | None = None):
  """One layer's share; int8 as the floats that it stands for."""
  if layer is not None:
    array = jax.tree.map(lambda x: x[layer], array)
  return (array.astype(np.float32) if isinstance(array, quantized.Int8)
          else array)


def _gathered(gather, value) -> np.ndarray:
  return np.asarray(gather(value()))
