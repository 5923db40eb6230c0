"""RoBERTa and CodeBERT (arXiv 1907.11692, 2002.08155).

Its layers are BERT's. Rows of the position table up to the padding id's are of
no use, and the masked language model's head is there if the architecture in
config.json says so.
"""

import re

from prompt_tuning.checkpoints.families import bert, config_json, weights
from prompt_tuning.models import text_encoder

NAME = "RoBERTa"
MODEL_TYPES = ("roberta",)
AUTO_CLASS = "AutoModel"
PREFIX = "roberta."
IGNORED = re.compile(
    r"(roberta\.)?(pooler\..*|embeddings\.position_ids)"
    r"|(classifier|qa_outputs|lm_head)\..*")
POOLING = "first_token"
HEADS = {"lm_head": "RobertaForMaskedLM"}
Config = text_encoder.Config


def read_config(config: config_json.ConfigJson) -> dict:
  """The keywords of `Config` that config.json gives."""
  offset = config.size("pad_token_id", default=1) + 1
  rows = config.size("max_position_embeddings", default=514)
  if rows <= offset:
    config.refuse(
        f"max_position_embeddings {rows}, of which the first {offset} are no "
        "token's", "copy the file again")
  return bert.shared_config(config) | {
      "max_positions": rows - offset,
      "position_offset": offset,
      "num_token_types": config.size("type_vocab_size", default=1),
  }


def write_config(config: text_encoder.Config) -> dict:
  """The inverse of `read_config`."""
  return bert.shared_content(config) | {
      "architectures": ["RobertaModel"],
      "model_type": "roberta",
      "max_position_embeddings": config.max_positions + config.position_offset,
      "pad_token_id": config.position_offset - 1,
  }


def weight_map(config: text_encoder.Config, content) -> weights.Map:
  """Where each parameter lies (see `families`)."""
  found = bert.encoder_map(config, PREFIX)
  if HEADS["lm_head"] in (content.get("architectures") or ()):
    found |= _head(config)
  return found


def _head(config: text_encoder.Config) -> weights.Map:
  """The masked language model's; its table is the embeddings'."""
  width = config.embed_dim
  found = weights.whole(
      "token_embedder/embedding",
      f"{PREFIX}embeddings.word_embeddings.weight", "lm_head.decoder.weight",
      stored=(config.vocab_size, width))
  found |= weights.linear(
      "lm_head/dense", "lm_head.dense", width, width, bias=True)
  found |= weights.norm("lm_head/layer_norm", "lm_head.layer_norm", width, True)
  return found | weights.whole(
      "lm_head/bias", "lm_head.bias", "lm_head.decoder.bias",
      stored=(config.vocab_size,))
