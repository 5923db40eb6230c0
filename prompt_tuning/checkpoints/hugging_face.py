"""Reads and writes T5 in Hugging Face's layout: config.json + safetensors.

Hugging Face stores a projection as [out, in] and the relative position bias as
[buckets, heads]; ours, T5X's, are the transposes. Which names are which is
`_RULES`, and it is used in both directions.
"""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
import math
import os
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from prompt_tuning import checkpoints, errors, formats

_EMBEDDING = "token_embedder/embedding"
_LOGITS = "decoder/logits_dense/kernel"

# Ours, Hugging Face's, whether the one is the other's transpose. `{n}` is the
# number of a layer.
_RULES = (
    (_EMBEDDING, "shared.weight", False),
    (_LOGITS, "lm_head.weight", True),
    *((f"{side}/{side}_norm/scale", f"{side}.final_layer_norm.weight", False)
      for side in ("encoder", "decoder")),
    *((f"{side}/relpos_bias/rel_embedding",
       f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
       True) for side in ("encoder", "decoder")),
    *((f"{side}/layers_{{n}}/{ours}/kernel",
       f"{side}.block.{{n}}.layer.{theirs}.weight", True)
      for side, blocks in (
          ("encoder", (("attention", "0.SelfAttention"),)),
          ("decoder", (("self_attention", "0.SelfAttention"),
                       ("encoder_decoder_attention", "1.EncDecAttention"))))
      for block, their_block in blocks
      for ours, theirs in (
          (f"{block}/{name}", f"{their_block}.{name[0]}")
          for name in ("query", "key", "value", "out"))),
    *((f"{side}/layers_{{n}}/mlp/{name}/kernel",
       f"{side}.block.{{n}}.layer.{place}.DenseReluDense.{name}.weight", True)
      for side, place in (("encoder", 1), ("decoder", 2))
      for name in ("wi", "wi_0", "wi_1", "wo")),
    *((f"{side}/layers_{{n}}/pre_{name}layer_norm/scale",
       f"{side}.block.{{n}}.layer.{place}.layer_norm.weight", False)
      for side, name, place in (
          ("encoder", "attention_", 0), ("encoder", "mlp_", 1),
          ("decoder", "self_attention_", 0),
          ("decoder", "cross_attention_", 1), ("decoder", "mlp_", 2))),
)

# Copies of the embedding table under other names, and a bias that old
# checkpoints carry and no model reads.
_TABLE_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_IGNORED = (
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16,
    "BF16": jnp.bfloat16}

_ACTIVATIONS = {"relu": ("relu",), "gated-gelu": ("gelu", "linear")}


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """One tensor of a safetensors file; `shape` is the stored one."""

  file: str
  name: str
  shape: tuple[int, ...]
  dtype: np.dtype | str  # the file's word for it until `_checked`
  transposed: bool = False


class HuggingFaceT5(checkpoints.BaseWeights):
  """A directory of a T5, mT5 or ByT5 as `save_pretrained` writes it.

  Attributes:
    config: the sizes and options that `models.t5.Config` takes, by its names.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens the directory `path`.

    Args:
      path: holds config.json and model.safetensors, or the shards that
        model.safetensors.index.json lists.

    Raises:
      UserError: if a file is missing or damaged, or is not a T5.
    """
    self.path = os.fspath(path)
    file = os.path.join(self.path, "config.json")
    with checkpoints.reading(file):
      self.config = _read_config(file)
    self._tensors, self.unknown = _ours(
        _list_tensors(self.path), self.config["tie_logits"])
    self.arrays = {
        name: jax.ShapeDtypeStruct(
            t.shape[::-1] if t.transposed else t.shape, t.dtype)
        for name, t in self._tensors.items()}
    rows = self.arrays[_EMBEDDING].shape[0]
    if rows != self.config["vocab_size"]:
      raise errors.UserError(
          f"{self.path}: config.json says vocab_size "
          f"{self.config['vocab_size']}, but the embedding table has {rows} "
          "rows: correct config.json, or copy the files again.")

  def blocks(self, path: str) -> Iterator[checkpoints.Block]:
    """See `BaseWeights.blocks`."""
    tensor = self._tensors[path]
    row_bytes = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
    step = max(1, checkpoints.BLOCK_BYTES // max(row_bytes, 1))
    for start in range(0, tensor.shape[0], step):
      stop = min(start + step, tensor.shape[0])
      # The library maps the file, and pages that were read count as ours
      # until it is closed: hence opened again for each block.
      with _opened(tensor.file) as file:
        block = file.get_slice(tensor.name)[start:stop]
      index = (slice(start, stop), *(slice(0, n) for n in tensor.shape[1:]))
      if tensor.transposed:
        index, block = index[::-1], block.T
      yield index, block


def is_hugging_face(path: str | os.PathLike) -> bool:
  """Whether the folder `path` looks like a Hugging Face model."""
  return os.path.isfile(os.path.join(path, "config.json"))


# --------------------------------------------------------------------- reading


@contextlib.contextmanager
def _opened(file: str):
  """`safetensors.safe_open` whose errors name the file."""
  with (checkpoints.reading(file, safetensors.SafetensorError),
        safetensors.safe_open(file, framework="numpy") as opened):
    yield opened


def _read_json(file: str) -> dict:
  with checkpoints.reading(file), open(file, encoding="utf-8") as stream:
    content = json.load(stream)
    if not isinstance(content, dict):
      raise ValueError("it is not a JSON object")
    return content


def _read_config(file: str) -> dict:
  """config.json under the names of `models.t5.Config`."""
  content = _read_json(file)
  kind = content.get("model_type")
  if kind not in ("t5", "mt5"):
    raise errors.UserError(
        f"{file} describes a model of type {kind!r}: only T5's own "
        "architecture ('t5', 'mt5') can be read.")
  projection = content.get("feed_forward_proj", "relu")
  if projection not in _ACTIVATIONS:
    raise errors.UserError(
        f"{file} has feed_forward_proj {projection!r}: only "
        f"{', '.join(_ACTIVATIONS)} are implemented.")
  if content.get("layer_norm_epsilon", 1e-6) != 1e-6:
    raise errors.UserError(
        f"{file} has layer_norm_epsilon {content['layer_norm_epsilon']}: only "
        "T5's 1e-06 is implemented.")

  def size(name: str, default: int | None = None) -> int:
    value = content.get(name)
    value = default if value is None else value
    if type(value) is not int or value <= 0:
      raise errors.UserError(
          f"{file} has {name} {value!r}, which must be a positive integer: "
          "copy the file again.")
    return value

  layers = size("num_layers")
  return {
      "vocab_size": size("vocab_size"),
      "embed_dim": size("d_model"),
      "num_heads": size("num_heads"),
      "head_dim": size("d_kv"),
      "mlp_dim": size("d_ff"),
      "num_encoder_layers": layers,
      "num_decoder_layers": size("num_decoder_layers", layers),
      "mlp_activations": _ACTIVATIONS[projection],
      "tie_logits": _ties_logits(content),
      "relpos_num_buckets": size("relative_attention_num_buckets", 32),
      "relpos_max_distance": size("relative_attention_max_distance", 128),
  }


def _ties_logits(content: dict) -> bool:
  """Whether the logits are the scaled product with the embedding table.

  From version 5 on, transformers writes `tie_word_embeddings: true` for every
  T5 and tells 1.0 from 1.1 by `scale_decoder_outputs`; it never scales an mT5.
  """
  if content["model_type"] == "mt5":
    return False
  return bool(content.get(
      "scale_decoder_outputs", content.get("tie_word_embeddings", True)))


def _list_tensors(path: str) -> dict[str, _Tensor]:
  """All tensors of the directory, by Hugging Face's names."""
  tensors = {}
  for file, wanted in _files(path).items():
    with _opened(file) as opened:
      held = set(opened.keys())
      if lacking := sorted(wanted - held):
        raise errors.UserError(
            f"{file} lacks {checkpoints.names(lacking)}, which "
            "model.safetensors.index.json says it has: copy the files again.")
      for name in wanted or held:
        view = opened.get_slice(name)
        tensors[name] = _Tensor(
            file, name, tuple(view.get_shape()), view.get_dtype())
  return tensors


def _files(path: str) -> dict[str, set[str]]:
  """The safetensors files of `path`, and which names the index expects."""
  single = os.path.join(path, "model.safetensors")
  if os.path.isfile(single):
    return {single: set()}
  index = single + ".index.json"
  if not os.path.isfile(index):
    raise errors.UserError(_no_safetensors(path))
  files = collections.defaultdict(set)
  with checkpoints.reading(index):
    for name, file in _read_json(index)["weight_map"].items():
      if os.path.basename(file) != file:
        raise ValueError(f"it refers to a file {file!r}")
      files[os.path.join(path, file)].add(name)
  return dict(files)


def _no_safetensors(path: str) -> str:
  if any(os.path.exists(os.path.join(path, name))
         for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")):
    return (
        f"{path} has its weights only in pytorch_model.bin, a pickle, which is "
        "never read; convert it once where transformers is installed: "
        f"T5ForConditionalGeneration.from_pretrained({path!r})"
        f".save_pretrained({path + '-safetensors'!r}).")
  return (f"{path} has no weights: neither model.safetensors nor "
          "model.safetensors.index.json is there; copy them beside "
          "config.json.")


def _ours(
    tensors: dict[str, _Tensor], tie_logits: bool
) -> tuple[dict[str, _Tensor], tuple[str, ...]]:
  """Renames tensors to our paths; also gives the names that have none."""
  found, unknown = {}, []
  for name, tensor in sorted(tensors.items()):
    if name in (*_TABLE_COPIES, *_IGNORED):
      continue
    path, transposed = _our_path(name)
    if path is None:
      unknown.append(name)
    else:
      found[path] = _checked(tensor, transposed)
  # A writer may have kept a shared tensor under any one of its names.
  for copy in (*_TABLE_COPIES, "lm_head.weight"):
    if _EMBEDDING not in found and copy in tensors:
      found[_EMBEDDING] = _checked(tensors[copy], False)
  if _EMBEDDING not in found:
    example = next(iter(tensors.values()), None)
    raise errors.UserError(
        f"{example.file if example else 'The checkpoint'} has no embedding "
        "table (shared.weight): give a T5ForConditionalGeneration.")
  if tie_logits:
    found.pop(_LOGITS, None)  # only a copy of the table
  elif _LOGITS not in found:
    # Unscaled logits of the table itself: transformers 5 makes such models.
    found[_LOGITS] = dataclasses.replace(found[_EMBEDDING], transposed=True)
  return found, tuple(unknown)


def _our_path(name: str) -> tuple[str | None, bool]:
  number = re.search(r"\.block\.(\d+)\.", name)
  number = number[1] if number else ""
  for ours, theirs, transposed in _RULES:
    if theirs.replace("{n}", number) == name:
      return ours.replace("{n}", number), transposed
  return None, False


def _checked(tensor: _Tensor, transposed: bool) -> _Tensor:
  """With its dtype as NumPy's; only float matrices and vectors are weights."""
  if tensor.dtype not in _DTYPES or not 1 <= len(tensor.shape) <= 2:
    raise errors.UserError(
        f"{tensor.file} holds {tensor.name} as {tensor.dtype} of shape "
        f"{tensor.shape}: quantised weights are not read, give the model in "
        "float32 or bfloat16.")
  return dataclasses.replace(
      tensor, dtype=np.dtype(_DTYPES[tensor.dtype]), transposed=transposed)


# --------------------------------------------------------------------- writing


def save_hugging_face_t5(
    directory: str | os.PathLike, params: Mapping, config: Mapping, dtype
):
  """Writes a directory that `T5ForConditionalGeneration` loads.

  All of the weights are held once more in `dtype` while they are written.

  Args:
    directory: made if it is not there; files of these names are replaced.
    params: nested dict of the model's parameters, layers one by one or
      stacked (`layers`, leading axis L).
    config: the keys of `HuggingFaceT5.config`; others are not looked at, so
      that `dataclasses.asdict` of a `models.t5.Config` does.
    dtype: of the file, float32 or bfloat16.

  Raises:
    UserError: if `params` has something that is no parameter of a T5, such as
      a prompt, or the files cannot be written.
  """
  dtype = np.dtype(dtype)
  tensors = {}
  for path, array in _one_by_one(params):
    name, transposed = _their_name(path)
    array = np.asarray(array)
    tensors[name] = np.ascontiguousarray(
        (array.T if transposed else array).astype(dtype))
  directory = os.fspath(directory)
  try:
    os.makedirs(directory, exist_ok=True)
  except OSError as error:
    raise errors.UserError(
        f"cannot make the folder {directory!r}: "
        f"{formats.why_not_written(error)}") from error
  formats.write_whole(
      os.path.join(directory, "model.safetensors"),
      # Transformers refuses files without this word of metadata.
      safetensors.numpy.save(tensors, metadata={"format": "pt"}))
  content = json.dumps(_their_config(config, dtype), indent=2, sort_keys=True)
  formats.write_whole(
      os.path.join(directory, "config.json"), (content + "\n").encode())


def _one_by_one(params: Mapping):
  """Yields (path, array), with stacked layers taken apart."""
  for path, array in flax.traverse_util.flatten_dict(params, sep="/").items():
    if "/layers/" not in path:
      yield path, array
      continue
    for i, one in enumerate(np.asarray(array)):
      yield path.replace("/layers/", f"/layers_{i}/"), one


def _their_name(path: str) -> tuple[str, bool]:
  number = re.search(r"/layers_(\d+)/", path)
  number = number[1] if number else ""
  for ours, theirs, transposed in _RULES:
    if ours.replace("{n}", number) == path:
      return theirs.replace("{n}", number), transposed
  raise errors.UserError(
      f"Hugging Face's T5 has no place for the parameter {path}: save the base "
      "model's parameters alone.")


def _their_config(config: Mapping, dtype: np.dtype) -> dict:
  activations = tuple(config["mlp_activations"])
  projection = {v: k for k, v in _ACTIVATIONS.items()}[activations]
  gated = len(activations) > 1
  return {
      "architectures": ["T5ForConditionalGeneration"],
      "model_type": "t5",
      "is_encoder_decoder": True,
      "vocab_size": config["vocab_size"],
      "d_model": config["embed_dim"],
      "num_heads": config["num_heads"],
      "d_kv": config["head_dim"],
      "d_ff": config["mlp_dim"],
      "num_layers": config["num_encoder_layers"],
      "num_decoder_layers": config["num_decoder_layers"],
      "feed_forward_proj": projection,
      "dense_act_fn": "gelu_new" if gated else "relu",
      "is_gated_act": gated,
      "relative_attention_num_buckets": config["relpos_num_buckets"],
      "relative_attention_max_distance": config["relpos_max_distance"],
      "layer_norm_epsilon": 1e-6,
      # Before transformers 5 the first of these two also told whether the
      # logits are scaled; from 5 on the second does.
      "tie_word_embeddings": config["tie_logits"],
      "scale_decoder_outputs": config["tie_logits"],
      "pad_token_id": 0,
      "eos_token_id": 1,
      "decoder_start_token_id": 0,
      "torch_dtype": dtype.name,
  }
