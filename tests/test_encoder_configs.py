"""Every gin file of an encoder builds without files and without memory.

Oracles: the parameters of the published checkpoints, counted by hand from
their sizes, without pooler and heads; and what their config.json files state.
"""

import json
import math

import jax
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import command_line, errors
from prompt_tuning.checkpoints import base_config, families
from prompt_tuning.checkpoints.families import config_json
from prompt_tuning.data import instance_encoders
from prompt_tuning.models import text_encoder

CONFIGS = command_line.PACKAGE / "configs"
PATH = "--gin.ENCODER_PATH='absent'"


@pytest.fixture
def encoder(clean_gin):
  """Makes the ENCODER of a gin file, named without `.gin`, and flags."""

  def read(name, *flags):
    clean_gin.clear_config()
    command_line.configure([
        f"--gin_file={CONFIGS}/encoders/{name}.gin", *flags])
    return clean_gin.get_configurable(instance_encoders.from_path)()

  return read


def parameters(rows, layers, width, hidden, norms):
  """Tables of so many rows, layers, and norms that are no layer's."""
  attention = 4 * (width * width + width)
  mlp = 2 * width * hidden + width + hidden
  return (rows * width + layers * (attention + mlp + 4 * width)
          + norms * 2 * width)


def roberta(layers, heads, width):
  return {"model_type": "roberta", "vocab_size": 50265, "hidden_size": width,
          "num_hidden_layers": layers, "num_attention_heads": heads,
          "intermediate_size": 4 * width, "type_vocab_size": 1,
          "max_position_embeddings": 514, "pad_token_id": 1,
          "layer_norm_eps": 1e-5, "hidden_act": "gelu"}


def codesage(layers, heads, width):
  return {"architectures": ["CodeSage"], "activation_function": "gelu_new",
          "layer_norm_epsilon": 1e-5, "hidden_size": width,
          "num_attention_heads": heads, "num_hidden_layers": layers,
          "intermediate_size": 4 * width, "max_position_embeddings": 2048,
          "vocab_size": 49154}


# Parameters, what config.json states, and how texts become one vector.
PUBLISHED = {
    # 22,713,216 with the pooler's 384 * 385.
    "minilm_l6": (22_565_376, {
        "model_type": "bert", "vocab_size": 30522, "hidden_size": 384,
        "num_hidden_layers": 6, "num_attention_heads": 12,
        "intermediate_size": 1536, "type_vocab_size": 2,
        "max_position_embeddings": 512, "layer_norm_eps": 1e-12,
        "hidden_act": "gelu"}, "normalized_mean"),
    # 124,645,632 with the pooler's 768 * 769.
    "roberta_base": (124_055_040, roberta(12, 12, 768), "first_token"),
    "codebert": (124_055_040, roberta(12, 12, 768), "first_token"),
    # 355,359,744 with the pooler's 1024 * 1025.
    "roberta_large": (354_310_144, roberta(24, 16, 1024), "first_token"),
    # "130M", "356M" and "1.3B" on the model cards.
    "codesage_small": (128_010_240, codesage(6, 8, 1024), "normalized_mean"),
    "codesage_base": (354_742_272, codesage(24, 8, 1024), "normalized_mean"),
    "codesage_large": (
        1_313_464_320, codesage(24, 16, 2048), "normalized_mean"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(encoder, name):
  found = encoder(name, PATH)
  count, content, pooling = PUBLISHED[name]
  leaves = jax.tree.leaves(found.abstract())
  assert sum(math.prod(leaf.shape) for leaf in leaves) == count
  assert found.module.pooling == pooling
  family = families.of_config(content, "config.json")
  stated = family.read_config(config_json.ConfigJson("config.json", content))

  class Weights:
    path = "absent"
    config = stated

  base_config.check(Weights, found.config)
  assert found.config.max_positions == stated["max_positions"]
  assert found.width == stated["embed_dim"]
  rows = (content["vocab_size"] + content["max_position_embeddings"]
          + stated["num_token_types"])
  assert count == parameters(
      rows, stated["num_layers"], found.width, stated["mlp_dim"], 1)


def test_options_reach_the_encoder(encoder, clean_gin):
  found = encoder(
      "minilm_l6", PATH, "--gin.ENCODER_DTYPE='bfloat16'",
      "--gin.ENCODER_POOLING='mean'", "--gin.ENCODER_KEEP='start'",
      "--gin.ENCODER_BATCH_TOKENS=65536")
  assert found.config.dtype == "bfloat16"
  assert found.module.pooling == "mean"
  assert (found._keep, found._batch_tokens) == ("start", 65536)
  # However often gin is asked, there is one, which loads its weights once.
  assert clean_gin.get_configurable(instance_encoders.from_path)() is found


def test_decoder_only_and_template(encoder, smollm2):
  """`decoder_only`; `encoder` and `text_encoder` are what it refines."""
  found = encoder("decoder_only", f"--gin.ENCODER_PATH={str(smollm2)!r}")
  assert found.width == 576
  leaves = jax.tree.leaves(found.abstract())
  assert sum(math.prod(leaf.shape) for leaf in leaves) == 134_515_008
  assert found.tokenize(["x", "x x"])[1].sum(1).tolist() == [1, 2]


def test_a_folder_of_another_size_is_refused(encoder, tmp_path):
  """The gin file says RoBERTa base and the folder holds less."""
  family = families.roberta
  config = text_encoder.Config(
      9, 8, 1, 2, 4, 12, 10, position_offset=2, num_token_types=1,
      norm_epsilon=1e-5)
  safetensors.numpy.save_file(
      {piece.names[0]: np.ones(piece.stored, np.float32)
       for piece in family.weight_map(config, {}).values()},
      tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(
      family.write_config(config)))
  found = encoder("roberta_base", f"--gin.ENCODER_PATH={str(tmp_path)!r}")
  with pytest.raises(errors.UserError, match="num_heads = 2.*12"):
    _ = found.params
