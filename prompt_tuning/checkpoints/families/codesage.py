"""CodeSage (arXiv 2402.01935): GPT-2's blocks, read in both directions.

Its published config.json files have no `model_type`, only the name of their
code, which is not run; `families` knows them by their architecture.
"""

import re

from prompt_tuning.checkpoints.families import config_json, gpt2, weights
from prompt_tuning.models import text_encoder

NAME = "CodeSage"
MODEL_TYPES = ("codesage",)
AUTO_CLASS = "AutoModel"
PREFIX = "transformer."
IGNORED = re.compile(r"(lm_head|classifier)\..*")
POOLING = "normalized_mean"
Config = text_encoder.Config


def read_config(config: config_json.ConfigJson) -> dict:
  """The keywords of `Config` that config.json gives."""
  width = config.size("hidden_size")
  heads, head_dim = config.heads(width, "num_attention_heads")
  config.must_be("position_embedding_type", "absolute")
  return {
      "vocab_size": config.size("vocab_size"),
      "embed_dim": width,
      "num_layers": config.size("num_hidden_layers"),
      "num_heads": heads,
      "head_dim": head_dim,
      "mlp_dim": config.size("intermediate_size"),
      "max_positions": config.size("max_position_embeddings"),
      "position_offset": 0,
      "num_token_types": 0,
      "mlp_activations": config.choice(
          "activation_function", config_json.ACTIVATIONS, "gelu_new"),
      "norm_first": True,
      "norm_epsilon": config.number("layer_norm_epsilon", default=1e-5),
  }


def write_config(config: text_encoder.Config) -> dict:
  """The inverse of `read_config`."""
  return {
      "architectures": ["CodeSage"],
      "model_type": "codesage",
      "vocab_size": config.vocab_size,
      "hidden_size": config.embed_dim,
      "num_hidden_layers": config.num_layers,
      "num_attention_heads": config.num_heads,
      "intermediate_size": config.mlp_dim,
      "max_position_embeddings": config.max_positions,
      "activation_function": config_json.activation_name(config),
      "layer_norm_epsilon": config.norm_epsilon,
  }


def weight_map(config: text_encoder.Config, content) -> weights.Map:
  """Where each parameter lies (see `families`)."""
  del content  # `Config` says it all
  width = config.embed_dim
  found = weights.whole(
      "token_embedder/embedding", "transformer.wte.weight",
      stored=(config.vocab_size, width))
  found |= weights.whole(
      "position_embedder/embedding", "transformer.wpe.weight",
      stored=(config.max_positions, width))
  found |= weights.norm(
      "encoder/encoder_norm", "transformer.ln_f", width, True)
  for n in range(config.num_layers):
    found |= gpt2.layer(config, f"encoder/layers_{n}", f"transformer.h.{n}")
  return found
