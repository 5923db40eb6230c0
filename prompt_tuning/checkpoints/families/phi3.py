"""Phi-3: a Llama whose projections are fused (Abdin et al. 2024, 2404.14219).

`qkv_proj` holds the rows of the queries, then of the keys, then of the values;
`gate_up_proj` those of the gate, then of the other half of the MLP.
"""

import re

from prompt_tuning.checkpoints.families import config_json, rope, weights
from prompt_tuning.models import causal_lm

NAME = "Phi-3"
MODEL_TYPES = ("phi3",)
AUTO_CLASS = "AutoModelForCausalLM"
PREFIX = "model."
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")
Config = causal_lm.Config


def read_config(config: config_json.ConfigJson) -> dict:
  """The keywords of `Config` that config.json gives."""
  width = config.size("hidden_size")
  heads, head_dim = config.heads(width, "num_attention_heads")
  config.must_be("hidden_act", "silu")
  window = config.get("sliding_window")
  return rope.read(config, head_dim) | {
      "vocab_size": config.size("vocab_size"),
      "embed_dim": width,
      "num_layers": config.size("num_hidden_layers"),
      "num_heads": heads,
      "num_kv_heads": config.kv_heads(heads),
      "head_dim": head_dim,
      "mlp_dim": config.size("intermediate_size"),
      "mlp_activations": ("silu", "linear"),
      "norm": "rms_norm",
      "norm_epsilon": config.number("rms_norm_eps", default=1e-5),
      "tie_logits": config.flag("tie_word_embeddings", False),
      "sliding_window": window and config.size("sliding_window"),
  }


def write_config(config: causal_lm.Config) -> dict:
  """The inverse of `read_config`."""
  return rope.write(config) | {
      "architectures": ["Phi3ForCausalLM"],
      "model_type": "phi3",
      "vocab_size": config.vocab_size,
      "hidden_size": config.embed_dim,
      "num_hidden_layers": config.num_layers,
      "num_attention_heads": config.num_heads,
      "num_key_value_heads": config.kv_heads,
      "intermediate_size": config.mlp_dim,
      "hidden_act": "silu",
      "rms_norm_eps": config.norm_epsilon,
      "sliding_window": config.sliding_window,
      "tie_word_embeddings": config.tie_logits,
  }


def weight_map(config: causal_lm.Config, content) -> weights.Map:
  """Where each parameter lies (see `families`)."""
  del content  # `Config` says it all
  width = config.embed_dim
  found = weights.table(config, "model.embed_tokens.weight")
  found |= weights.norm("decoder/decoder_norm", "model.norm", width)
  found |= weights.logits(config)
  for n in range(config.num_layers):
    found |= _layer(config, f"decoder/layers_{n}", f"model.layers.{n}")
  return found


def _layer(config: causal_lm.Config, ours: str, theirs: str) -> weights.Map:
  width, hidden = config.embed_dim, config.mlp_dim
  queries = config.num_heads * config.head_dim
  keys = config.kv_heads * config.head_dim
  found = weights.norm(
      f"{ours}/pre_attention_layer_norm", f"{theirs}.input_layernorm", width)
  found |= weights.norm(
      f"{ours}/pre_mlp_layer_norm", f"{theirs}.post_attention_layernorm",
      width)
  found |= weights.linear(
      f"{ours}/attention/out", f"{theirs}.self_attn.o_proj", queries, width)
  found |= weights.linear(
      f"{ours}/mlp/wo", f"{theirs}.mlp.down_proj", hidden, width)
  for path, name, outputs, start, size in (
      ("attention/query", "self_attn.qkv_proj", queries + 2 * keys, 0,
       queries),
      ("attention/key", "self_attn.qkv_proj", queries + 2 * keys, queries,
       keys),
      ("attention/value", "self_attn.qkv_proj", queries + 2 * keys,
       queries + keys, keys),
      ("mlp/wi_0", "mlp.gate_up_proj", 2 * hidden, 0, hidden),
      ("mlp/wi_1", "mlp.gate_up_proj", 2 * hidden, hidden, hidden)):
    found |= weights.linear(
        f"{ours}/{path}", f"{theirs}.{name}", width, outputs,
        part=weights.Part(start, size))
  return found
