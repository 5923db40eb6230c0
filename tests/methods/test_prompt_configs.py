"""The gin files of prompts' methods build, and train what they say."""

import math
import re

import numpy as np
import pytest

from prompt_tuning import command_line
from prompt_tuning.methods import multitask, p_tuning, prefix
from prompt_tuning.models import decoder_only, encoder_decoder
from prompt_tuning.train import state as state_lib

CONFIGS = command_line.PACKAGE / "configs"
BASES = {
    "models/gpt2_prompt": ["--gin.VOCABULARY=None",
                           "--gin.INITIAL_CHECKPOINT_PATH='gpt2'"],
    "models/t5_1_1_default_prompt": []}


@pytest.fixture
def build(clean_gin):
  """The model and the sizes of what is trained, by path."""

  def run(base, method, *flags):
    command_line.configure([
        *(f"--gin_file={CONFIGS}/{name}.gin"
          for name in (base, f"prompts/{method}")),
        *BASES[base], *flags])
    kind = (encoder_decoder.EncoderDecoderModel if "t5" in base
            else decoder_only.DecoderOnlyModel)
    model = clean_gin.get_configurable(kind)()
    shapes, _ = model.abstract()
    trainable, _ = state_lib.split(
        shapes, command_line.macro("TRAINABLE_REGEX"))
    return model, {path: math.prod(leaf.shape) for path, leaf in
                   state_lib.flatten(trainable).items()}

  return run


@pytest.mark.parametrize("base", BASES)
def test_p_tuning(build, base):
  model, sizes = build(
      base, "p_tuning", "--gin.PROMPT_LENGTH=20",
      "--gin.PROMPT_HIDDEN_DIM=128")
  width = model.module.config.embed_dim
  assert isinstance(model.module.prompt_factory().prompt, p_tuning.MlpPrompt)
  # Table, and three layers with their biases.
  assert sum(sizes.values()) == (
      20 * width + (width + 1) * 128 + 129 * 128 + 129 * width)


@pytest.mark.parametrize("base", BASES)
def test_p_tuning_with_an_lstm(build, base):
  _, sizes = build(
      base, "p_tuning", "--gin.PROMPT_HIDDEN_DIM=16",
      "--gin.train_prompts.Prompt.prompt=@p_tuning.LstmPrompt()")
  assert len([path for path in sizes if "lstm" in path]) == 12


@pytest.mark.parametrize("base", BASES)
def test_multitask(build, base):
  model, sizes = build(
      base, "multitask", "--gin.NUM_PROMPT_TASKS=3", "--gin.PROMPT_LENGTH=5")
  assert isinstance(model.module.prompt_factory(), multitask.FirstTokenTask)
  width = model.module.config.embed_dim
  assert sum(sizes.values()) == 5 * width + 3 * (5 + width)


def test_prefix(build):
  model, sizes = build("models/gpt2_prompt", "prefix")
  assert isinstance(model.module.prefix_factory(), prefix.ProjectedPrefix)
  assert all(re.fullmatch("decoder/prefix/.*", path) for path in sizes)
  # The authors' code at this width: table, and two layers with biases.
  assert sum(sizes.values()) == (
      5 * 768 + 769 * 512 + 513 * 2 * 12 * 768)


@pytest.mark.parametrize("method", ["p_tuning_v2", "prefix_peft"])
def test_prefix_without_a_projection(build, method):
  """5 x 12 x 2 x 768 numbers."""
  _, sizes = build(
      "models/gpt2_prompt", method, "--gin.PREFIX_LENGTH=5")
  assert sizes == {"decoder/prefix/prefix": 92_160}


def test_prefixes_of_t5(build, clean_gin):
  """Three sets as in the paper, or the decoder's alone as in PEFT."""
  model, sizes = build(
      "models/t5_1_1_default_prompt", "prefix", "--gin.PREFIX_HIDDEN_DIM=16")
  config = model.module.config
  width = config.num_heads * config.head_dim
  assert model.module.prompt_factory is None
  assert sum(sizes.values()) == sum(
      5 * width + (width + 1) * 16 + 17 * 2 * layers * width for layers in (
          config.num_encoder_layers, config.num_decoder_layers,
          config.num_decoder_layers))
  clean_gin.clear_config()
  model, sizes = build("models/t5_1_1_default_prompt", "prefix_peft")
  assert sizes == {
      "decoder/prefix/prefix": 5 * 2 * config.num_encoder_layers * width}


def test_starts_of_a_prefix(build, clean_gin, tmp_path):
  """Words and a file, in gin; what they do is test_prefix_start's."""
  build("models/gpt2_prompt", "prefix_from_words", "--gin.PREFIX_TEXT='x'")
  assert "from_words()" in repr(clean_gin.query_parameter("%PREFIX_START"))
  clean_gin.clear_config()
  np.save(tmp_path / "prefix.npy", np.zeros((5, 18432), np.float32))
  model, _ = build(
      "models/gpt2_prompt", "prefix",
      f"--gin_file={CONFIGS}/prompts/prefix_from_file.gin",
      f"--gin.PREFIX_FILE='{tmp_path / 'prefix.npy'}'")
  start = model.module.prefix_factory().start
  assert start(None, None, 5).shape == (5, 18432)


@pytest.mark.parametrize("design,total", [
    ("layer", 12 * (2 * 768 + 769 * 100 + 101 * 768)),
    ("projections", 12 * 2 * (769 * 100 + 101 * 768))])
def test_adapter(build, design, total):
  _, sizes = build(
      "models/gpt2_prompt", "adapter", f"--gin.ADAPTER_DESIGN='{design}'")
  assert sum(sizes.values()) == total


@pytest.mark.parametrize("method", ["embedding_only", "infix"])
def test_ablations_of_prefix_tuning(build, method):
  model, sizes = build("models/gpt2_prompt", method)
  assert sum(sizes.values()) == 10 * 768 + 769 * 512 + 513 * 768
  assert model.module.prompt_factory().combine.__name__ == (
      "infix_prompt" if method == "infix" else "prefix_prompt")


def test_a_prefix_and_the_whole_model(build):
  model, sizes = build("models/gpt2_prompt", "prefix_and_full")
  shapes, _ = model.abstract()
  assert len(sizes) == len(state_lib.flatten(shapes))


@pytest.mark.parametrize("combine", ["replace_prompt", "add_prompt"])
def test_per_layer(build, combine):
  flags = [] if combine == "replace_prompt" else [
      "--gin.train_prompts.Prompt.prompt=@prompts.Prompt()",
      "--gin.per_layer/train_prompts.Prompt.combine=@per_layer.add_prompt"]
  model, sizes = build("models/gpt2_prompt", "per_layer", *flags)
  wanted = {f"decoder/layers_{i}/prompt/prompt/prompt": 10 * 768
            for i in range(12)}
  if flags:
    wanted["decoder/prompt/prompt/prompt"] = 10 * 768
  assert sizes == wanted
  assert model.module.layer_prompt_factory().combine.__name__ == combine


@pytest.mark.parametrize("base", BASES)
def test_lopa(build, base):
  """Two heads of the model's own width, and the shared prompt."""
  model, sizes = build(
      base, "lopa", "--gin.LOPA_RANK=2", "--gin.HEAD_WIDTH=16")
  width = model.module.config.embed_dim
  assert model.instance_encoder is None
  assert sum(sizes.values()) == (
      10 * width + 2 * (width + 1) * 16 + 17 * 10 * 2 + 17 * width * 2)


@pytest.mark.parametrize("base", BASES)
def test_idpg(build, base):
  model, sizes = build(base, "idpg", "--gin.PHM=4")
  width = model.module.config.embed_dim
  # Rules, parts and biases of two layers.
  assert sum(sizes.values()) == (
      4**3 + width**2 // 4 + width + 4**3 + 10 * width**2 // 4 + 10 * width)


def test_an_encoder_is_the_models(build):
  model, sizes = build(
      "models/gpt2_prompt", "lopa", "--gin.ENCODER_PATH='absent'",
      f"--gin_file={CONFIGS}/encoders/codesage_small.gin")
  assert model.instance_encoder.width == 1024
  assert sum(sizes.values()) == (
      10 * 768 + 2 * (1024 * 1024 + 1024) + 1025 * 10 * 4 + 1025 * 768 * 4)
