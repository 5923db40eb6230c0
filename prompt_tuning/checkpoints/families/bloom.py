"""BLOOM and BLOOMZ (arXiv 2211.05100, 2211.01786).

Positions are ALiBi's, and a norm follows the embeddings. `query_key_value`
holds, for each head, the rows of its query, of its key and of its value.
"""

from prompt_tuning.checkpoints.families import config_json, weights
from prompt_tuning.models import causal_lm

NAME = "BLOOM"
MODEL_TYPES = ("bloom",)
AUTO_CLASS = "AutoModelForCausalLM"
PREFIX = "transformer."
IGNORED = None
Config = causal_lm.Config


def read_config(config: config_json.ConfigJson) -> dict:
  """The keywords of `Config` that config.json gives."""
  width = config.size("n_embed", "hidden_size")
  heads, head_dim = config.heads(width, "n_head", "num_attention_heads")
  config.must_be("apply_residual_connection_post_layernorm", False)
  return {
      "vocab_size": config.size("vocab_size"),
      "embed_dim": width,
      "num_layers": config.size("n_layer", "num_hidden_layers"),
      "num_heads": heads,
      "num_kv_heads": heads,
      "head_dim": head_dim,
      "mlp_dim": 4 * width,
      "mlp_activations": ("gelu",),
      "positions": "alibi",
      # Nothing in the model bounds it; this is what it was trained with.
      "max_positions": config.size("seq_length", default=2048),
      "norm": "layer_norm",
      "norm_epsilon": config.number("layer_norm_epsilon", default=1e-5),
      "qkv_bias": True,
      "attention_out_bias": True,
      "mlp_bias": True,
      "embedding_norm": True,
      "tie_logits": config.flag("tie_word_embeddings", True),
  }


def write_config(config: causal_lm.Config) -> dict:
  """The inverse of `read_config`."""
  return {
      "architectures": ["BloomForCausalLM"],
      "model_type": "bloom",
      "vocab_size": config.vocab_size,
      "hidden_size": config.embed_dim,
      "n_layer": config.num_layers,
      "n_head": config.num_heads,
      "seq_length": config.max_positions,
      "layer_norm_epsilon": config.norm_epsilon,
      "apply_residual_connection_post_layernorm": False,
      "tie_word_embeddings": config.tie_logits,
  }


def weight_map(config: causal_lm.Config, content) -> weights.Map:
  """Where each parameter lies (see `families`)."""
  del content  # `Config` says it all
  width = config.embed_dim
  found = weights.table(config, "transformer.word_embeddings.weight")
  found |= weights.norm(
      "embedding_norm", "transformer.word_embeddings_layernorm", width, True)
  found |= weights.norm(
      "decoder/decoder_norm", "transformer.ln_f", width, True)
  found |= weights.logits(config)
  for n in range(config.num_layers):
    found |= _layer(config, f"decoder/layers_{n}", f"transformer.h.{n}")
  return found


def _layer(config: causal_lm.Config, ours: str, theirs: str) -> weights.Map:
  width, hidden = config.embed_dim, config.mlp_dim
  count, size = config.num_heads, config.head_dim
  found = weights.norm(
      f"{ours}/pre_attention_layer_norm", f"{theirs}.input_layernorm", width,
      True)
  found |= weights.norm(
      f"{ours}/pre_mlp_layer_norm", f"{theirs}.post_attention_layernorm",
      width, True)
  for i, path in enumerate(("query", "key", "value")):
    found |= weights.linear(
        f"{ours}/attention/{path}", f"{theirs}.self_attention.query_key_value",
        width, 3 * count * size, True, weights.Part(i * size, size, count))
  for path, name, inputs, outputs in (
      ("attention/out", "self_attention.dense", count * size, width),
      ("mlp/wi", "mlp.dense_h_to_4h", width, hidden),
      ("mlp/wo", "mlp.dense_4h_to_h", hidden, width)):
    found |= weights.linear(
        f"{ours}/{path}", f"{theirs}.{name}", inputs, outputs, bias=True)
  return found
