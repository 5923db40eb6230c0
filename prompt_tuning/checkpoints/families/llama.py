"""Llama and what has its shape: Llama 3, DeepSeek-Coder, SmolLM2, CodeLlama.

Touvron et al. 2023 (arXiv 2302.13971), grouped heads from Llama 2 on (arXiv
2307.09288). Every projection is a tensor of its own.
"""

import re

from prompt_tuning.checkpoints.families import config_json, rope, weights
from prompt_tuning.models import causal_lm

NAME = "Llama"
MODEL_TYPES = ("llama",)
AUTO_CLASS = "AutoModelForCausalLM"
PREFIX = "model."
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")
Config = causal_lm.Config


def read_config(config: config_json.ConfigJson) -> dict:
  """The keywords of `Config` that config.json gives."""
  width = config.size("hidden_size")
  heads = config.size("num_attention_heads")
  head_dim = config.size("head_dim", default=width // heads)
  config.must_be("hidden_act", "silu")
  bias = config.flag("attention_bias", False)
  positions = rope.read(config, head_dim)
  if positions["rotary_dim"]:
    config.refuse("a partial_rotary_factor", "a Llama rotates whole heads")
  return positions | {
      "vocab_size": config.size("vocab_size"),
      "embed_dim": width,
      "num_layers": config.size("num_hidden_layers"),
      "num_heads": heads,
      "num_kv_heads": config.kv_heads(heads),
      "head_dim": head_dim,
      "mlp_dim": config.size("intermediate_size"),
      "mlp_activations": ("silu", "linear"),
      "norm": "rms_norm",
      "norm_epsilon": config.number("rms_norm_eps", default=1e-6),
      "qkv_bias": bias,
      "attention_out_bias": bias,
      "mlp_bias": config.flag("mlp_bias", False),
      "tie_logits": config.flag("tie_word_embeddings", False),
  }


def write_config(config: causal_lm.Config) -> dict:
  """The inverse of `read_config`."""
  return rope.write(config) | {
      "architectures": ["LlamaForCausalLM"],
      "model_type": "llama",
      "vocab_size": config.vocab_size,
      "hidden_size": config.embed_dim,
      "num_hidden_layers": config.num_layers,
      "num_attention_heads": config.num_heads,
      "num_key_value_heads": config.kv_heads,
      "head_dim": config.head_dim,
      "intermediate_size": config.mlp_dim,
      "hidden_act": "silu",
      "rms_norm_eps": config.norm_epsilon,
      "attention_bias": config.qkv_bias,
      "mlp_bias": config.mlp_bias,
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
  width = config.embed_dim
  queries = config.num_heads * config.head_dim
  keys = config.kv_heads * config.head_dim
  found = weights.norm(
      f"{ours}/pre_attention_layer_norm", f"{theirs}.input_layernorm", width)
  found |= weights.norm(
      f"{ours}/pre_mlp_layer_norm", f"{theirs}.post_attention_layernorm",
      width)
  for path, name, inputs, outputs, bias in (
      ("attention/query", "self_attn.q_proj", width, queries, config.qkv_bias),
      ("attention/key", "self_attn.k_proj", width, keys, config.qkv_bias),
      ("attention/value", "self_attn.v_proj", width, keys, config.qkv_bias),
      ("attention/out", "self_attn.o_proj", queries, width,
       config.attention_out_bias),
      ("mlp/wi_0", "mlp.gate_proj", width, config.mlp_dim, config.mlp_bias),
      ("mlp/wi_1", "mlp.up_proj", width, config.mlp_dim, config.mlp_bias),
      ("mlp/wo", "mlp.down_proj", config.mlp_dim, width, config.mlp_bias)):
    found |= weights.linear(
        f"{ours}/{path}", f"{theirs}.{name}", inputs, outputs, bias)
  return found
