"""Reads Llama weights from a GGUF file, as llama.cpp writes it.

Projections are stored as [out, in], ours are the transposes. llama.cpp turns
neighbouring dimensions of queries and keys where Hugging Face and we turn the
two halves of a head; its converter reorders their rows for that, and here the
order is put back. Rotations that a Llama 3 stretches are stored as their
factors only; the rule behind them is found again.
"""

from collections.abc import Iterator
import os
import re

import jax
import numpy as np

from prompt_tuning import checkpoints
from prompt_tuning.errors import UserError
from prompt_tuning.formats import gguf
from prompt_tuning.models import rotary

FAMILY = "llama"

_EMBEDDING = "token_embedder/embedding"
_LOGITS = "decoder/logits_dense/kernel"
_ROTATIONS = "rope_freqs.weight"

# Of rotations: read as part of the configuration, or all computed again.
_IGNORED = re.compile(
    r"rope_freqs\.weight|blk\.\d+\.(attn_rot_embd|rope_freqs)(\.weight)?")

# Ours, GGUF's, our shape: V vocabulary, H model width, N and K all query and
# all key heads' widths, F MLP width.
_MODEL = (
    (_EMBEDDING, "token_embd.weight", "VH"),
    ("decoder/decoder_norm/scale", "output_norm.weight", "H"),
    (_LOGITS, "output.weight", "HV"),
)
_NORMS = (
    ("pre_attention_layer_norm", "attn_norm"),
    ("pre_mlp_layer_norm", "ffn_norm"))
_DENSE = (
    ("attention/query", "attn_q", "HN"), ("attention/key", "attn_k", "HK"),
    ("attention/value", "attn_v", "HK"), ("attention/out", "attn_output", "NH"),
    ("mlp/wi_0", "ffn_gate", "HF"), ("mlp/wi_1", "ffn_up", "HF"),
    ("mlp/wo", "ffn_down", "FH"))

# Which biases a model's option stands for.
_BIASES = {
    "qkv_bias": ("attn_q", "attn_k", "attn_v"),
    "attention_out_bias": ("attn_output",),
    "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down")}

_REORDERED = re.compile(r"attention/(query|key)/(kernel|bias)$")

# What changes a Llama's logits in ways that are not implemented.
_REFUSED = (
    "expert_count", "attention.clamp_kqv", "attention.scale", "logit_scale",
    "residual_scale", "embedding_scale", "attention.temperature_scale")


class GgufWeights(checkpoints.BaseWeights):
  """A GGUF file of the architecture `llama`.

  Quantised numbers are given as float32, others as they are stored.

  Attributes:
    config: what `models.causal_lm.Config` takes, by its names.
    family: "llama".
  """

  family = FAMILY

  def __init__(self, path: str | os.PathLike):
    """Opens the file `path`.

    Raises:
      UserError: if it is damaged, of another architecture, or lacks tensors.
    """
    self.path = os.fspath(path)
    self._file = gguf.GgufFile(self.path)
    self.config = _read_config(self._file)
    self._names, self.arrays = _match(self._file, self.config)

  def blocks(self, path: str) -> Iterator[checkpoints.Block]:
    """See `BaseWeights.blocks`."""
    name = self._names[path]
    shape = self._file.tensors[name].shape
    head_dim = self.config["head_dim"] if _REORDERED.search(path) else 1
    if len(shape) == 1:
      row = self._file.rows(name, 0, 1)[0]
      yield (slice(0, shape[0]),), _halves(row, head_dim)
      return
    row_bytes = shape[1] * self.arrays[path].dtype.itemsize
    heads = max(1, checkpoints.BLOCK_BYTES // (row_bytes * head_dim))
    for start in range(0, shape[0], heads * head_dim):
      stop = min(start + heads * head_dim, shape[0])
      block = _halves(self._file.rows(name, start, stop), head_dim)
      index = (slice(start, stop), slice(0, shape[1]))
      if path != _EMBEDDING:
        index, block = index[::-1], block.T
      yield index, block


def is_gguf(path: str | os.PathLike) -> bool:
  """Whether `path` names a GGUF file."""
  return os.fspath(path).endswith(".gguf")


def _halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
  """Rows of whole heads with their pairs one half a head apart.

  Args:
    rows: [N * D, ...] in which dimensions 2i and 2i + 1 turn together.
    head_dim: D; 1 leaves the rows as they are.

  Returns:
    The rows in an order in which i and i + D/2 turn together.
  """
  if head_dim == 1:
    return rows
  pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
  return pairs.swapaxes(1, 2).reshape(rows.shape)


# ----------------------------------------------------------------- the model


def _read_config(file: gguf.GgufFile) -> dict:
  """The metadata under the names of `models.causal_lm.Config`."""
  architecture = file.get("general.architecture", "")
  if architecture != FAMILY:
    raise UserError(
        f"{file.path} holds a model of the architecture {architecture!r}: of "
        f"GGUF files only {FAMILY!r} is read; give others as a Hugging Face "
        "directory.")
  for name in _REFUSED:
    if file.get(f"{FAMILY}.{name}"):
      raise UserError(
          f"{file.path} has {FAMILY}.{name}, which is not implemented: give a "
          "Llama without it.")
  width = _size(file, "embedding_length")
  heads = _size(file, "attention.head_count")
  head_dim = _size(file, "attention.key_length", width // heads)
  for name in ("attention.value_length", "rope.dimension_count"):
    if (other := _size(file, name, head_dim)) != head_dim or head_dim % 2:
      raise UserError(
          f"{file.path} has {FAMILY}.{name} {other} and heads of width "
          f"{head_dim}, which must be even and the same: give a Llama whose "
          "heads are turned as a whole.")
  theta = file.get(f"{FAMILY}.rope.freq_base", 10000.0)
  biases = {
      option: any(f"blk.0.{name}.bias" in file.tensors for name in names)
      for option, names in _BIASES.items()}
  window = file.get(f"{FAMILY}.attention.sliding_window", 0)
  return {
      "vocab_size": _vocabulary(file),
      "embed_dim": width,
      "num_layers": _size(file, "block_count"),
      "num_heads": heads,
      "num_kv_heads": _size(file, "attention.head_count_kv", heads),
      "head_dim": head_dim,
      "mlp_dim": _size(file, "feed_forward_length"),
      "max_positions": _size(file, "context_length"),
      "positions": "rotary",
      "rope_theta": theta,
      "rope_scaling": _rope_scaling(file, theta, head_dim),
      "norm": "rms_norm",
      "norm_epsilon": file.get(
          f"{FAMILY}.attention.layer_norm_rms_epsilon", 1e-5),
      "mlp_activations": ("silu", "linear"),
      "tie_logits": "output.weight" not in file.tensors,
      "sliding_window": window or None,
      **biases,
  }


def _size(file: gguf.GgufFile, name: str, default: int | None = None) -> int:
  value = file.get(f"{FAMILY}.{name}", default)
  if type(value) is not int or value <= 0:
    raise UserError(
        f"{file.path} has {FAMILY}.{name} {value!r}, which must be a positive "
        "integer: copy the file again.")
  return value


def _vocabulary(file: gguf.GgufFile) -> int:
  """Rows of the embedding table."""
  table = file.tensors.get("token_embd.weight")
  if table is None:
    raise UserError(
        f"{file.path} has no embedding table (token_embd.weight): give the "
        "file of a whole model.")
  return table.shape[0]


def _rope_scaling(
    file: gguf.GgufFile, theta: float, head_dim: int
) -> rotary.RopeScaling | None:
  """How the file stretches its positions, if it does."""
  prefix = f"{FAMILY}.rope.scal"
  kind = file.get(f"{prefix}ing.type", "none")
  factor = file.get(f"{prefix}ing.factor") or file.get(f"{prefix}e_linear")
  if kind == "linear" or (kind == "none" and factor):
    return rotary.RopeScaling("linear", float(factor or 1.0))
  if kind != "none":
    raise UserError(
        f"{file.path} stretches its positions by {kind!r} "
        f"({prefix}ing.type): only 'linear' and Llama 3's are implemented.")
  if _ROTATIONS not in file.tensors:
    return None
  factors = file.rows(_ROTATIONS, 0, 1)[0]
  if np.all(factors == 1):
    return None
  # Llama 3.1 and 3.2 differ in the factor alone, which is the largest.
  scaling = rotary.RopeScaling("llama3", float(factors.max()))
  if factors.shape != (head_dim // 2,) or not np.allclose(
      rotary.frequencies(head_dim, theta) / factors,
      rotary.frequencies(head_dim, theta, scaling), rtol=1e-4, atol=0):
    raise UserError(
        f"{file.path} stretches its positions in a way ({_ROTATIONS}) that is "
        "neither Llama 3.1's nor 3.2's: give the model as a Hugging Face "
        "directory, whose config.json names the rule.")
  return scaling


# --------------------------------------------------------------- the tensors


def _expected(config: dict) -> dict[str, tuple[str, str]]:
  """Our path and shape (in letters) of each of the model's GGUF tensors."""
  expected = {
      theirs: (ours, letters) for ours, theirs, letters in _MODEL
      if ours != _LOGITS or not config["tie_logits"]}
  biased = {
      name for option, names in _BIASES.items() if config[option]
      for name in names}
  for n in range(config["num_layers"]):
    ours, theirs = f"decoder/layers_{n}/", f"blk.{n}."
    for norm, name in _NORMS:
      expected[f"{theirs}{name}.weight"] = (f"{ours}{norm}/scale", "H")
    for dense, name, letters in _DENSE:
      expected[f"{theirs}{name}.weight"] = (f"{ours}{dense}/kernel", letters)
      if name in biased:
        expected[f"{theirs}{name}.bias"] = (f"{ours}{dense}/bias", letters[1])
  return expected


def _match(file: gguf.GgufFile, config: dict):
  """GGUF's name, and our shape and dtype, of each parameter."""
  if config["num_layers"] > len(file.tensors):
    raise UserError(
        f"{file.path} says that it has {config['num_layers']} layers, and has "
        f"{len(file.tensors)} tensors: copy the file again.")
  expected = _expected(config)
  if missing := [name for name in expected if name not in file.tensors]:
    raise UserError(
        f"{file.path} lacks {len(missing)} of the tensors of a Llama of "
        f"{config['num_layers']} layers ({checkpoints.names(missing)}): copy "
        "the file again.")
  if extra := sorted(
      name for name in file.tensors
      if name not in expected and not _IGNORED.fullmatch(name)):
    raise UserError(
        f"{file.path} holds {len(extra)} tensors that no Llama of "
        f"{config['num_layers']} layers has ({checkpoints.names(extra)}): give "
        "a model of Llama's own architecture.")
  sizes = {
      "V": config["vocab_size"], "H": config["embed_dim"],
      "N": config["num_heads"] * config["head_dim"],
      "K": config["num_kv_heads"] * config["head_dim"],
      "F": config["mlp_dim"]}
  names, arrays = {}, {}
  for theirs, (ours, letters) in expected.items():
    shape = tuple(sizes[letter] for letter in letters)
    tensor = file.tensors[theirs]
    stored = shape if ours == _EMBEDDING else shape[::-1]
    if tensor.shape != stored:
      raise UserError(
          f"{file.path} holds {theirs} of shape {tensor.shape}, which must be "
          f"{stored} by the file's own sizes: copy the file again.")
    names[ours] = theirs
    arrays[ours] = jax.ShapeDtypeStruct(shape, tensor.dtype)
  return names, arrays
