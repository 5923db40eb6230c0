"""BERT and MiniLM (Devlin et al. 2018, arXiv 1810.04805; 2002.10957).

RoBERTa has the same layers under the same names. Heads of any task, and the
pooler, which is one of the next-sentence task, are left alone.
"""

import dataclasses
import re

from prompt_tuning.checkpoints.families import config_json, weights
from prompt_tuning.models import text_encoder

NAME = "BERT"
MODEL_TYPES = ("bert",)
AUTO_CLASS = "AutoModel"
PREFIX = "bert."
IGNORED = re.compile(
    r"(bert\.)?(pooler\..*|embeddings\.position_ids)"
    r"|(cls|classifier|qa_outputs|lm_head)\..*")
POOLING = "mean"
Config = text_encoder.Config


def read_config(config: config_json.ConfigJson) -> dict:
  """The keywords of `Config` that config.json gives."""
  return shared_config(config) | {
      "max_positions": config.size("max_position_embeddings", default=512),
      "position_offset": 0,
      "num_token_types": config.size("type_vocab_size", default=2),
  }


def shared_config(config: config_json.ConfigJson) -> dict:
  """What BERT's and RoBERTa's config.json say in the same words."""
  width = config.size("hidden_size")
  heads, head_dim = config.heads(width, "num_attention_heads")
  config.must_be("position_embedding_type", "absolute")
  config.must_be("is_decoder", False)
  return {
      "vocab_size": config.size("vocab_size"),
      "embed_dim": width,
      "num_layers": config.size("num_hidden_layers"),
      "num_heads": heads,
      "head_dim": head_dim,
      "mlp_dim": config.size("intermediate_size"),
      "mlp_activations": config.choice(
          "hidden_act", config_json.ACTIVATIONS, "gelu"),
      "norm_first": False,
      "norm_epsilon": config.number("layer_norm_eps", default=1e-12),
  }


def write_config(config: text_encoder.Config) -> dict:
  """The inverse of `read_config`."""
  return shared_content(config) | {
      "architectures": ["BertModel"],
      "model_type": "bert",
      "max_position_embeddings": config.max_positions,
  }


def shared_content(config: text_encoder.Config) -> dict:
  """The inverse of `shared_config`."""
  return {
      "vocab_size": config.vocab_size,
      "hidden_size": config.embed_dim,
      "num_hidden_layers": config.num_layers,
      "num_attention_heads": config.num_heads,
      "intermediate_size": config.mlp_dim,
      "type_vocab_size": config.num_token_types,
      "hidden_act": config_json.activation_name(config),
      "layer_norm_eps": config.norm_epsilon,
  }


def weight_map(config: text_encoder.Config, content) -> weights.Map:
  """Where each parameter lies (see `families`)."""
  del content  # `Config` says it all
  return encoder_map(config, PREFIX)


def encoder_map(config: text_encoder.Config, prefix: str) -> weights.Map:
  """Embeddings and layers; names of tensors begin with `prefix`."""
  width, found = config.embed_dim, {}
  for ours, theirs, rows in (
      ("token", "word", config.vocab_size),
      ("position", "position", config.max_positions + config.position_offset),
      ("token_type", "token_type", config.num_token_types)):
    found |= weights.whole(
        f"{ours}_embedder/embedding",
        f"{prefix}embeddings.{theirs}_embeddings.weight", stored=(rows, width))
  found |= _norm("embedding_norm", f"{prefix}embeddings.LayerNorm", width)
  for n in range(config.num_layers):
    found |= _layer(
        config, f"encoder/layers_{n}", f"{prefix}encoder.layer.{n}")
  return found


def _layer(
    config: text_encoder.Config, ours: str, theirs: str
) -> weights.Map:
  width, hidden = config.embed_dim, config.mlp_dim
  heads = config.num_heads * config.head_dim
  found = {}
  for path, name, inputs, outputs in (
      ("attention/query", "attention.self.query", width, heads),
      ("attention/key", "attention.self.key", width, heads),
      ("attention/value", "attention.self.value", width, heads),
      ("attention/out", "attention.output.dense", heads, width),
      ("mlp/wi", "intermediate.dense", width, hidden),
      ("mlp/wo", "output.dense", hidden, width)):
    found |= weights.linear(
        f"{ours}/{path}", f"{theirs}.{name}", inputs, outputs, bias=True)
  for path, name in (("attention", "attention.output"), ("mlp", "output")):
    found |= _norm(
        f"{ours}/post_{path}_layer_norm", f"{theirs}.{name}.LayerNorm", width)
  return found


def _norm(path: str, name: str, width: int) -> weights.Map:
  """A norm; weights converted from TensorFlow call it gamma and beta."""
  found = weights.norm(path, name, width, bias=True)
  return {
      ours: dataclasses.replace(piece, names=(*piece.names, f"{name}.{old}"))
      for (ours, piece), old in zip(found.items(), ("gamma", "beta"))}
