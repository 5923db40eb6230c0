"""T5, mT5 and ByT5 (Raffel et al. 2020, arXiv 1910.10683).

The relative position bias is stored [buckets, heads]; ours is its transpose.
"""

import re

from prompt_tuning.checkpoints.families import config_json, weights
from prompt_tuning.models import t5

NAME = "T5"
MODEL_TYPES = ("t5", "mt5")
AUTO_CLASS = "T5ForConditionalGeneration"
PREFIX = ""
# A bias that old checkpoints carry and no model reads.
IGNORED = re.compile(
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias"
    r"\.weight")
Config = t5.Config

_TABLES = (
    "shared.weight", "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight")
_ACTIVATIONS = {"relu": ("relu",), "gated-gelu": ("gelu", "linear")}


def read_config(config: config_json.ConfigJson) -> dict:
  """The keywords of `Config` that config.json gives."""
  config.must_be("layer_norm_epsilon", 1e-6)
  layers = config.size("num_layers")
  return {
      "vocab_size": config.size("vocab_size"),
      "embed_dim": config.size("d_model"),
      "num_heads": config.size("num_heads"),
      "head_dim": config.size("d_kv"),
      "mlp_dim": config.size("d_ff"),
      "num_encoder_layers": layers,
      "num_decoder_layers": config.size("num_decoder_layers", default=layers),
      "mlp_activations": config.choice(
          "feed_forward_proj", _ACTIVATIONS, "relu"),
      "tie_logits": _ties_logits(config),
      "relpos_num_buckets": config.size(
          "relative_attention_num_buckets", default=32),
      "relpos_max_distance": config.size(
          "relative_attention_max_distance", default=128),
  }


def _ties_logits(config: config_json.ConfigJson) -> bool:
  """Whether the logits are the scaled product with the embedding table.

  From version 5 on, transformers writes `tie_word_embeddings: true` for every
  T5 and tells 1.0 from 1.1 by `scale_decoder_outputs`; it never scales an mT5.
  """
  if config.get("model_type") == "mt5":
    return False
  return bool(config.get(
      "scale_decoder_outputs", "tie_word_embeddings", default=True))


def write_config(config: t5.Config) -> dict:
  """The inverse of `read_config`."""
  activations = tuple(config.mlp_activations)
  gated = len(activations) > 1
  return {
      "architectures": ["T5ForConditionalGeneration"],
      "model_type": "t5",
      "is_encoder_decoder": True,
      "vocab_size": config.vocab_size,
      "d_model": config.embed_dim,
      "num_heads": config.num_heads,
      "d_kv": config.head_dim,
      "d_ff": config.mlp_dim,
      "num_layers": config.num_encoder_layers,
      "num_decoder_layers": config.num_decoder_layers,
      "feed_forward_proj": {v: k for k, v in _ACTIVATIONS.items()}[activations],
      "dense_act_fn": "gelu_new" if gated else "relu",
      "is_gated_act": gated,
      "relative_attention_num_buckets": config.relpos_num_buckets,
      "relative_attention_max_distance": config.relpos_max_distance,
      "layer_norm_epsilon": 1e-6,
      # Before transformers 5 the first of these two also told whether the
      # logits are scaled; from 5 on the second does.
      "tie_word_embeddings": config.tie_logits,
      "scale_decoder_outputs": config.tie_logits,
      "pad_token_id": 0,
      "eos_token_id": 1,
      "decoder_start_token_id": 0,
  }


def weight_map(config: t5.Config, content) -> weights.Map:
  """Where each parameter lies (see `families`)."""
  del content  # `Config` says it all
  found = weights.whole(
      "token_embedder/embedding", *_TABLES, "lm_head.weight",
      stored=(config.vocab_size, config.embed_dim))
  # Unscaled logits of the table itself: transformers 5 makes such models.
  found |= weights.logits(config, copies=_TABLES)
  for side, layers in (("encoder", config.num_encoder_layers),
                       ("decoder", config.num_decoder_layers)):
    found |= weights.norm(
        f"{side}/{side}_norm", f"{side}.final_layer_norm", config.embed_dim)
    found[f"{side}/relpos_bias/rel_embedding"] = weights.Piece(
        (f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
         ".weight",), (config.relpos_num_buckets, config.num_heads), True)
    for n in range(layers):
      found |= _LAYERS[side](config, f"{side}/layers_{n}", f"{side}.block.{n}")
  return found


def _encoder_layer(config: t5.Config, ours: str, theirs: str) -> weights.Map:
  return (
      _attention(config, f"{ours}/attention", f"{theirs}.layer.0.SelfAttention")
      | _mlp(config, f"{ours}/mlp", f"{theirs}.layer.1")
      | _norms(config, ours, theirs, ("attention", "mlp")))


def _decoder_layer(config: t5.Config, ours: str, theirs: str) -> weights.Map:
  return (
      _attention(
          config, f"{ours}/self_attention", f"{theirs}.layer.0.SelfAttention")
      | _attention(config, f"{ours}/encoder_decoder_attention",
                   f"{theirs}.layer.1.EncDecAttention")
      | _mlp(config, f"{ours}/mlp", f"{theirs}.layer.2")
      | _norms(
          config, ours, theirs, ("self_attention", "cross_attention", "mlp")))


_LAYERS = {"encoder": _encoder_layer, "decoder": _decoder_layer}


def _attention(config: t5.Config, ours: str, theirs: str) -> weights.Map:
  width, heads = config.embed_dim, config.num_heads * config.head_dim
  found = weights.linear(f"{ours}/out", f"{theirs}.o", heads, width)
  for name in ("query", "key", "value"):
    found |= weights.linear(
        f"{ours}/{name}", f"{theirs}.{name[0]}", width, heads)
  return found


def _mlp(config: t5.Config, ours: str, theirs: str) -> weights.Map:
  width, hidden = config.embed_dim, config.mlp_dim
  names = ("wi_0", "wi_1") if len(config.mlp_activations) > 1 else ("wi",)
  found = weights.linear(
      f"{ours}/wo", f"{theirs}.DenseReluDense.wo", hidden, width)
  for name in names:
    found |= weights.linear(
        f"{ours}/{name}", f"{theirs}.DenseReluDense.{name}", width, hidden)
  return found


def _norms(config: t5.Config, ours: str, theirs: str, names) -> weights.Map:
  found = {}
  for place, name in enumerate(names):
    found |= weights.norm(
        f"{ours}/pre_{name}_layer_norm", f"{theirs}.layer.{place}.layer_norm",
        config.embed_dim)
  return found
