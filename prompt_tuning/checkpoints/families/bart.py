"""BART (Lewis et al. 2019, arXiv 1910.13461).

Published directories leave out `model.` before names, have copies of the table
on both sides, and most of them no `final_logits_bias`, which is 0 then.
"""

import re

from prompt_tuning.checkpoints.families import config_json, weights
from prompt_tuning.models import bart

NAME = "BART"
MODEL_TYPES = ("bart",)
AUTO_CLASS = "BartForConditionalGeneration"
PREFIX = "model."
# A number that old checkpoints carry.
IGNORED = re.compile(r"(model\.)?(encoder|decoder)\.version")
Config = bart.Config

_TABLES = (
    "model.shared.weight", "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight", "lm_head.weight")


def read_config(config: config_json.ConfigJson) -> dict:
  """The keywords of `Config` that config.json gives."""
  width = config.size("d_model")
  heads, head_dim = config.heads(width, "encoder_attention_heads")
  hidden = config.size("encoder_ffn_dim")
  config.must_be("decoder_attention_heads", heads)
  config.must_be("decoder_ffn_dim", hidden)
  config.must_be("tie_word_embeddings", True)
  # Old files also say what of fairseq's model BART is not.
  for name, value in (
      ("normalize_before", False), ("normalize_embedding", True),
      ("add_final_layer_norm", False), ("static_position_embeddings", False)):
    config.must_be(name, value)
  return {
      "vocab_size": config.size("vocab_size"),
      "embed_dim": width,
      "num_heads": heads,
      "head_dim": head_dim,
      "mlp_dim": hidden,
      "num_encoder_layers": config.size("encoder_layers"),
      "num_decoder_layers": config.size("decoder_layers"),
      "max_positions": config.size("max_position_embeddings", default=1024),
      "mlp_activations": config.choice(
          "activation_function", config_json.ACTIVATIONS, "gelu"),
      "scale_embedding": config.flag("scale_embedding", False),
      "pad_id": _token(config, "pad_token_id", 1),
      "start_id": _token(config, "decoder_start_token_id", 2),
  }


def _token(config: config_json.ConfigJson, name: str, default: int) -> int:
  value = config.get(name, default=default)
  if type(value) is not int or value < 0:
    config.refuse(f"{name} {value!r}, which must be the number of a token",
                  "copy the file again")
  return value


def write_config(config: bart.Config) -> dict:
  """The inverse of `read_config`."""
  return {
      "architectures": ["BartForConditionalGeneration"],
      "model_type": "bart",
      "is_encoder_decoder": True,
      "vocab_size": config.vocab_size,
      "d_model": config.embed_dim,
      "encoder_attention_heads": config.num_heads,
      "decoder_attention_heads": config.num_heads,
      "encoder_ffn_dim": config.mlp_dim,
      "decoder_ffn_dim": config.mlp_dim,
      "encoder_layers": config.num_encoder_layers,
      "decoder_layers": config.num_decoder_layers,
      "num_hidden_layers": config.num_encoder_layers,
      "max_position_embeddings": config.max_positions,
      "activation_function": config_json.activation_name(config),
      "scale_embedding": config.scale_embedding,
      "tie_word_embeddings": True,
      "bos_token_id": 0,
      "pad_token_id": config.pad_id,
      "eos_token_id": 2,
      "decoder_start_token_id": config.start_id,
  }


def weight_map(config: bart.Config, content) -> weights.Map:
  """Where each parameter lies (see `families`)."""
  del content  # `Config` says it all
  width = config.embed_dim
  found = weights.whole(
      "token_embedder/embedding", *_TABLES, stored=(config.vocab_size, width))
  found |= {"final_logits_bias": weights.Piece(
      ("final_logits_bias",), (1, config.vocab_size), zero_if_absent=True)}
  for side, layers in (("encoder", config.num_encoder_layers),
                       ("decoder", config.num_decoder_layers)):
    found |= weights.whole(
        f"{side}/position_embedder/embedding",
        f"model.{side}.embed_positions.weight",
        stored=(config.max_positions + bart.POSITION_OFFSET, width))
    found |= weights.norm(
        f"{side}/embedding_norm", f"model.{side}.layernorm_embedding", width,
        True)
    for n in range(layers):
      found |= _layer(
          config, side, f"{side}/layers_{n}", f"model.{side}.layers.{n}")
  return found


# Ours and theirs: each kind of attention, and what its norm is called.
_ATTENTIONS = {
    "encoder": (("attention", "self_attn", "attention"),),
    "decoder": (
        ("self_attention", "self_attn", "self_attention"),
        ("encoder_decoder_attention", "encoder_attn", "cross_attention")),
}


def _layer(
    config: bart.Config, side: str, ours: str, theirs: str
) -> weights.Map:
  width, hidden = config.embed_dim, config.mlp_dim
  heads = config.num_heads * config.head_dim
  found = weights.linear(
      f"{ours}/mlp/wi", f"{theirs}.fc1", width, hidden, bias=True)
  found |= weights.linear(
      f"{ours}/mlp/wo", f"{theirs}.fc2", hidden, width, bias=True)
  found |= weights.norm(
      f"{ours}/post_mlp_layer_norm", f"{theirs}.final_layer_norm", width, True)
  for path, name, norm in _ATTENTIONS[side]:
    for ours_of, theirs_of in (
        ("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
      found |= weights.linear(
          f"{ours}/{path}/{ours_of}", f"{theirs}.{name}.{theirs_of}", width,
          heads, bias=True)
    found |= weights.linear(
        f"{ours}/{path}/out", f"{theirs}.{name}.out_proj", heads, width,
        bias=True)
    found |= weights.norm(
        f"{ours}/post_{norm}_layer_norm", f"{theirs}.{name}_layer_norm", width,
        True)
  return found
