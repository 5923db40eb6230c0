"""Phi-1, Phi-1.5 and Phi-2: attention and MLP beside each other, with biases.

Li et al. 2023 (arXiv 2309.05463). One norm stands before both halves of a
layer, a part of each head is rotated, and the logits have a bias, so that they
are never only the embedding table.
"""

import re

from prompt_tuning.checkpoints.families import config_json, rope, weights
from prompt_tuning.models import causal_lm

NAME = "Phi"
MODEL_TYPES = ("phi",)
AUTO_CLASS = "AutoModelForCausalLM"
PREFIX = "model."
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")
Config = causal_lm.Config

_ROTATED = 0.5  # where config.json does not say; Phi-2's says 0.4


def read_config(config: config_json.ConfigJson) -> dict:
  """The keywords of `Config` that config.json gives."""
  width = config.size("hidden_size")
  heads, head_dim = config.heads(width, "num_attention_heads")
  config.must_be("qk_layernorm", False)
  return rope.read(config, head_dim, _ROTATED) | {
      "vocab_size": config.size("vocab_size"),
      "embed_dim": width,
      "num_layers": config.size("num_hidden_layers"),
      "num_heads": heads,
      "num_kv_heads": config.kv_heads(heads),
      "head_dim": head_dim,
      "mlp_dim": config.size("intermediate_size"),
      "mlp_activations": config.choice(
          "hidden_act", config_json.ACTIVATIONS, "gelu_new"),
      "norm": "layer_norm",
      "norm_epsilon": config.number("layer_norm_eps", default=1e-5),
      "qkv_bias": True,
      "attention_out_bias": True,
      "mlp_bias": True,
      "logits_bias": True,
      "parallel_block": True,
      "tie_logits": False,
  }


def write_config(config: causal_lm.Config) -> dict:
  """The inverse of `read_config`."""
  return rope.write(config, _ROTATED) | {
      "architectures": ["PhiForCausalLM"],
      "model_type": "phi",
      "vocab_size": config.vocab_size,
      "hidden_size": config.embed_dim,
      "num_hidden_layers": config.num_layers,
      "num_attention_heads": config.num_heads,
      "num_key_value_heads": config.kv_heads,
      "intermediate_size": config.mlp_dim,
      "hidden_act": config_json.activation_name(config),
      "layer_norm_eps": config.norm_epsilon,
      "qk_layernorm": False,
      "tie_word_embeddings": False,
  }


def weight_map(config: causal_lm.Config, content) -> weights.Map:
  """Where each parameter lies (see `families`)."""
  del content  # `Config` says it all
  table = "model.embed_tokens.weight"
  found = weights.table(config, table)
  found |= weights.norm(
      "decoder/decoder_norm", "model.final_layernorm", config.embed_dim, True)
  found |= weights.logits(config, bias=True, copies=(table,))
  for n in range(config.num_layers):
    found |= _layer(config, f"decoder/layers_{n}", f"model.layers.{n}")
  return found


def _layer(config: causal_lm.Config, ours: str, theirs: str) -> weights.Map:
  width, hidden = config.embed_dim, config.mlp_dim
  queries = config.num_heads * config.head_dim
  keys = config.kv_heads * config.head_dim
  found = weights.norm(
      f"{ours}/pre_attention_layer_norm", f"{theirs}.input_layernorm", width,
      True)
  for path, name, inputs, outputs in (
      ("attention/query", "self_attn.q_proj", width, queries),
      ("attention/key", "self_attn.k_proj", width, keys),
      ("attention/value", "self_attn.v_proj", width, keys),
      ("attention/out", "self_attn.dense", queries, width),
      ("mlp/wi", "mlp.fc1", width, hidden),
      ("mlp/wo", "mlp.fc2", hidden, width)):
    found |= weights.linear(
        f"{ours}/{path}", f"{theirs}.{name}", inputs, outputs, bias=True)
  return found
