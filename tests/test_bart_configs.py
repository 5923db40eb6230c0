"""Gin files of BART.

Oracle: the parameters of the published models as transformers counts them, its
table once and without the logits' bias, which is a buffer there.
"""

import math

import jax
import pytest

from prompt_tuning import command_line
from prompt_tuning.checkpoints import base_config, families
from prompt_tuning.checkpoints.families import config_json
from prompt_tuning.models import encoder_decoder
from prompt_tuning.train import epochs, settings
from prompt_tuning.train import state as state_lib

CONFIGS = command_line.PACKAGE / "configs"
PATH = "--gin.INITIAL_CHECKPOINT_PATH='base'"
SCAN = "--gin.SCAN_LAYERS=True"
PUBLISHED = {"bart_base": (139_420_416, 6, 12, 768),
             "bart_large": (406_291_456, 12, 16, 1024)}


@pytest.fixture
def configure(clean_gin):
  """The model of gin files of the package, by names without `.gin`."""

  def read(*arguments):
    clean_gin.clear_config()
    command_line.configure([
        a if a.startswith("--") else f"--gin_file={CONFIGS}/{a}.gin"
        for a in arguments])
    return clean_gin.get_configurable(encoder_decoder.EncoderDecoderModel)()

  return read


def sizes(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(configure, name):
  """models/`bart` and `bart_prompt`, architectures/`bart`, and a size."""
  count, layers, heads, width = PUBLISHED[name]
  model = configure(f"models/{name}_prompt", PATH, SCAN)
  shapes, axes = model.abstract()
  assert jax.tree.structure(shapes) == jax.tree.structure(
      axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
  trained, frozen = state_lib.split(shapes, ["encoder/prompt/.*"])
  assert sizes(trained) == 20 * width
  assert frozen.pop("final_logits_bias").shape == (1, 50265)
  assert sizes(frozen) == count

  class Weights:
    path = "base"
    config = families.bart.read_config(config_json.ConfigJson("", {
        "model_type": "bart", "vocab_size": 50265, "d_model": width,
        "encoder_layers": layers, "decoder_layers": layers,
        "encoder_attention_heads": heads, "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width,
        "max_position_embeddings": 1024, "activation_function": "gelu"}))

  base_config.check(Weights, model.module.config)


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_counts_as_many(name):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  count, layers, heads, width = PUBLISHED[name]
  with torch.device("meta"):
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(
        d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width))
  assert sum(p.numel() for p in model.parameters()) == count


def test_lora_reaches_all_three_kinds_of_attention(configure):
  model = configure("models/bart_base", "prompts/lora", PATH, SCAN)
  paths = {path.rsplit("/lora/")[0]
           for path in state_lib.flatten(model.abstract()[0])
           if "/lora/" in path}
  assert paths == {
      f"{side}/layers/{name}/{part}" for side, name in (
          ("encoder", "attention"), ("decoder", "self_attention"),
          ("decoder", "encoder_decoder_attention"))
      for part in ("query", "value")}


# What the code of arXiv 2101.00190 gives to `generate`, in our words.
SEARCHES = {
    "beam_e2e": {"num_beams": 5, "alpha": 1.0, "early_stopping": False,
                 "bad_words": [[628], [198]]},
    "beam_xsum": {"num_beams": 6, "alpha": 0.8, "early_stopping": True,
                  "min_new_tokens": 10, "no_repeat_ngram_size": 3,
                  "forced_bos_id": 0, "forced_eos_id": 2}}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_are_those_of_prefix_tuning(configure, clean_gin, name):
  configure("models/bart_base", f"models/decoding/{name}", PATH)
  found = clean_gin.get_bindings("beam_search")
  assert found.pop("penalty").__name__ == "hugging_face_length"
  assert found == SEARCHES[name] | {"rules": "hugging_face"}


# Table 5 of the paper and the code's own command: macros, steps of 49 examples,
# and how many numbers are kept of a prefix.
SUMMARIES = {
    "prefix_xsum": ({
        "TASK_NAME": "xsum", "PREFIX_LENGTH": 200, "PREFIX_HIDDEN_DIM": 800,
        "LEARNING_RATE": 5e-5, "BATCH_SIZE": 48, "NUM_MICROBATCHES": 3,
        "TASK_FEATURE_LENGTHS": {"inputs": 1024, "targets": 60}},
                    30 * 2, 62_130_528),
    "prefix_cnn_dailymail": ({
        "TASK_NAME": "cnn_dailymail", "PREFIX_LENGTH": 5,
        "PREFIX_HIDDEN_DIM": 512, "LEARNING_RATE": 5e-5, "BATCH_SIZE": 10,
        "TASK_FEATURE_LENGTHS": {"inputs": 512, "targets": 56}},
                             5 * 5, 3 * (5 * 1024 + 1025 * 512 + 513 * 24576))}


@pytest.mark.parametrize("name", SUMMARIES)
def test_runs_on_summaries(configure, clean_gin, tmp_path, name):
  """Oracle for the trained numbers: the paper's layers, counted by hand."""
  for side in ("source", "target"):
    (tmp_path / f"train.{side}").write_text("a text\n" * 49)
  macros, steps, trained = SUMMARIES[name]
  model = configure(
      "models/bart_large", "prompts/prefix", f"runs/{name}", PATH, SCAN,
      "--gin.MODEL_DIR='run'", f"--gin.SOURCE_TARGET_FOLDER={str(tmp_path)!r}")
  for macro, value in macros.items():
    assert clean_gin.query_parameter(f"%{macro}") == value
  assert model.loss_normalizing_factor == "num_tokens"
  assert model.module.config.dropout_rate == 0.1
  with clean_gin.config_scope("whole"):
    assert clean_gin.get_configurable(epochs.steps)() == steps
  prefixes, _ = state_lib.split(
      model.abstract()[0], command_line.macro("TRAINABLE_REGEX"))
  assert sizes(prefixes) == trained


def test_a_run_on_few_summaries(configure, clean_gin, tmp_path):
  for split in ("train", "val"):
    for side in ("source", "target"):
      (tmp_path / f"{split}.{side}").write_text("a text\n" * 70)
  configure(
      "models/bart_large", "prompts/prefix", "runs/prefix_low_data_xsum", PATH,
      SCAN, "--gin.MODEL_DIR='run'", "--gin.LOW_DATA_SEED=3",
      f"--gin.SOURCE_TARGET_FOLDER={str(tmp_path)!r}")
  for macro, value in {"TRAIN_STEPS": 400, "WARMUP_STEPS": 100,
                       "EVAL_PERIOD": 50, "BATCH_SIZE": 10}.items():
    assert clean_gin.query_parameter(f"%{macro}") == value
  for scope, count in (("train", 50), ("train_eval", 15)):
    with clean_gin.config_scope(scope):
      dataset = clean_gin.get_configurable(settings.DatasetConfig)()
    task = dataset.mixture_or_task_name
    assert task.name == "xsum_50_3"
    assert len(list(task.examples(dataset.split))) == count
