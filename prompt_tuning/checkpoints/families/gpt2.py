"""GPT-2 and distilgpt2 (Radford et al. 2019).

Its projections are `Conv1D`s, stored [in, out] as our kernels are; `c_attn`
holds the columns of the queries, then of the keys, then of the values.
"""

import re

from prompt_tuning.checkpoints.families import config_json, weights
from prompt_tuning.models import causal_lm

NAME = "GPT-2"
MODEL_TYPES = ("gpt2",)
AUTO_CLASS = "AutoModelForCausalLM"
PREFIX = "transformer."
IGNORED = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")
Config = causal_lm.Config


def read_config(config: config_json.ConfigJson) -> dict:
  """The keywords of `Config` that config.json gives."""
  width = config.size("n_embd")
  heads, head_dim = config.heads(width, "n_head")
  config.must_be("scale_attn_weights", True)
  config.must_be("scale_attn_by_inverse_layer_idx", False)
  config.must_be("add_cross_attention", False)
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
      "positions": "learned",
      "max_positions": config.size("n_positions", default=1024),
      "norm": "layer_norm",
      "norm_epsilon": config.number("layer_norm_epsilon", default=1e-5),
      "qkv_bias": True,
      "attention_out_bias": True,
      "mlp_bias": True,
      "tie_logits": config.flag("tie_word_embeddings", True),
  }


def write_config(config: causal_lm.Config) -> dict:
  """The inverse of `read_config`."""
  return {
      "architectures": ["GPT2LMHeadModel"],
      "model_type": "gpt2",
      "vocab_size": config.vocab_size,
      "n_embd": config.embed_dim,
      "n_layer": config.num_layers,
      "n_head": config.num_heads,
      "n_inner": config.mlp_dim,
      "n_positions": config.max_positions,
      "n_ctx": config.max_positions,
      "activation_function": config_json.activation_name(config),
      "layer_norm_epsilon": config.norm_epsilon,
      "tie_word_embeddings": config.tie_logits,
  }


def weight_map(config: causal_lm.Config, content) -> weights.Map:
  """Where each parameter lies (see `families`)."""
  del content  # `Config` says it all
  width = config.embed_dim
  found = weights.table(config, "transformer.wte.weight")
  found |= weights.whole(
      "position_embedder/embedding", "transformer.wpe.weight",
      stored=(config.max_positions, width))
  found |= weights.norm(
      "decoder/decoder_norm", "transformer.ln_f", width, True)
  found |= weights.logits(config)
  for n in range(config.num_layers):
    found |= layer(config, f"decoder/layers_{n}", f"transformer.h.{n}")
  return found


def layer(config, ours: str, theirs: str) -> weights.Map:
  """One block, of a decoder-only model or of an encoder (CodeSage)."""
  width, hidden = config.embed_dim, config.mlp_dim
  heads = config.num_heads * config.head_dim
  found = weights.norm(
      f"{ours}/pre_attention_layer_norm", f"{theirs}.ln_1", width, True)
  found |= weights.norm(
      f"{ours}/pre_mlp_layer_norm", f"{theirs}.ln_2", width, True)
  for i, path in enumerate(("query", "key", "value")):
    found |= _conv1d(
        f"{ours}/attention/{path}", f"{theirs}.attn.c_attn", width, 3 * heads,
        start=i * heads, size=heads)
  for path, name, inputs, outputs in (
      ("attention/out", "attn.c_proj", heads, width),
      ("mlp/wi", "mlp.c_fc", width, hidden),
      ("mlp/wo", "mlp.c_proj", hidden, width)):
    found |= _conv1d(
        f"{ours}/{path}", f"{theirs}.{name}", inputs, outputs)
  return found


def _conv1d(
    path: str, name: str, inputs: int, outputs: int, start: int = 0,
    size: int | None = None,
) -> weights.Map:
  size = size or outputs
  return {
      f"{path}/kernel": weights.Piece(
          (f"{name}.weight",), (inputs, outputs),
          part=weights.Part(start, size, axis=1)),
      f"{path}/bias": weights.Piece(
          (f"{name}.bias",), (outputs,), part=weights.Part(start, size)),
  }
