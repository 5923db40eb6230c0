"""CodeGen and CodeGen2 (Nijkamp et al. 2022, 2023: 2203.13474, 2305.02309).

Both were trained with each layer's heads shared out to the cores of a TPU, and
`qkv_proj` still shows it: for each core, the rows of its queries, then of its
values, then of its keys. CodeGen2-1B and -3.7B had 8 cores, all others 4.
Attention and MLP stand beside each other; rotated pairs are neighbours.
"""

from collections.abc import Mapping
import re

from prompt_tuning import errors
from prompt_tuning.checkpoints.families import config_json, weights
from prompt_tuning.models import causal_lm

NAME = "CodeGen"
MODEL_TYPES = ("codegen",)
AUTO_CLASS = "AutoModelForCausalLM"
PREFIX = "transformer."
IGNORED = re.compile(
    r"(transformer\.)?h\.\d+\.attn\.(causal_mask|masked_bias|bias)")
Config = causal_lm.Config

_CORES = 4  # what transformers' own CodeGen takes every file to have


def read_config(config: config_json.ConfigJson) -> dict:
  """The keywords of `Config` that config.json gives."""
  width = config.size("n_embd")
  heads, head_dim = config.heads(width, "n_head")
  config.must_be("scale_attn_weights", True)
  if heads % _cores(config.content):
    config.refuse(
        f"n_head {heads}, not a multiple of the {_cores(config.content)} "
        "groups that qkv_proj is stored in", "copy the file again")
  rotary_dim = config.size("rotary_dim", default=head_dim)
  if rotary_dim % 2 or rotary_dim > head_dim:
    config.refuse(
        f"rotary_dim {rotary_dim} with heads of width {head_dim}",
        "an even number of each head's entries must be rotated")
  return {
      "vocab_size": config.size("vocab_size"),
      "embed_dim": width,
      "num_layers": config.size("n_layer"),
      "num_heads": heads,
      "num_kv_heads": heads,
      "head_dim": head_dim,
      "mlp_dim": config.size("n_inner", default=4 * width),
      "mlp_activations": config.choice(
          "activation_function", config_json.ACTIVATIONS, "gelu_new"),
      "positions": "rotary",
      "max_positions": config.size("n_positions", default=2048),
      "rotary_dim": None if rotary_dim == head_dim else rotary_dim,
      "rotary_interleaved": True,
      "norm": "layer_norm",
      "norm_epsilon": config.number("layer_norm_epsilon", default=1e-5),
      "mlp_bias": True,
      "logits_bias": True,
      "parallel_block": True,
      "tie_logits": False,
  }


def write_config(config: causal_lm.Config) -> dict:
  """The inverse of `read_config`, in CodeGen's layout of 4 groups."""
  if config.num_heads % _CORES:
    raise errors.UserError(
        f"CodeGen's files hold heads in {_CORES} equal groups: a model with "
        f"{config.num_heads} heads cannot be saved as one.")
  return {
      "architectures": ["CodeGenForCausalLM"],
      "model_type": "codegen",
      "vocab_size": config.vocab_size,
      "n_embd": config.embed_dim,
      "n_layer": config.num_layers,
      "n_head": config.num_heads,
      "n_inner": config.mlp_dim,
      "n_positions": config.max_positions,
      "n_ctx": config.max_positions,
      "rotary_dim": config.rotary_dim or config.head_dim,
      "activation_function": config_json.activation_name(config),
      "layer_norm_epsilon": config.norm_epsilon,
      "tie_word_embeddings": False,
  }


def _cores(content: Mapping) -> int:
  """How many groups `qkv_proj` is stored in.

  No key of config.json says so; it stands in the code that comes with each
  model. Of the published ones, `head_dim` is in config.json of the two that
  have 8 groups, and only there.
  """
  return _CORES if content.get("head_dim") is None else 2 * _CORES


def weight_map(config: causal_lm.Config, content: Mapping) -> weights.Map:
  """Where each parameter lies (see `families`)."""
  width = config.embed_dim
  found = weights.table(config, "transformer.wte.weight")
  found |= weights.norm(
      "decoder/decoder_norm", "transformer.ln_f", width, True)
  found |= weights.logits(
      config, bias=True, copies=("transformer.wte.weight",))
  for n in range(config.num_layers):
    found |= _layer(
        config, _cores(content), f"decoder/layers_{n}", f"transformer.h.{n}")
  return found


def _layer(
    config: causal_lm.Config, cores: int, ours: str, theirs: str
) -> weights.Map:
  width, hidden = config.embed_dim, config.mlp_dim
  heads = config.num_heads * config.head_dim
  each = heads // cores
  found = weights.norm(
      f"{ours}/pre_attention_layer_norm", f"{theirs}.ln_1", width, True)
  for i, path in enumerate(("query", "value", "key")):
    found |= weights.linear(
        f"{ours}/attention/{path}", f"{theirs}.attn.qkv_proj", width,
        3 * heads, part=weights.Part(i * each, each, cores))
  found |= weights.linear(
      f"{ours}/attention/out", f"{theirs}.attn.out_proj", heads, width)
  found |= weights.linear(
      f"{ours}/mlp/wi", f"{theirs}.mlp.fc_in", width, hidden, bias=True)
  found |= weights.linear(
      f"{ours}/mlp/wo", f"{theirs}.mlp.fc_out", hidden, width, bias=True)
  return found
