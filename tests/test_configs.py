"""Every gin file parses with its companions and builds without any memory.

Oracles: the parameter counts that the papers and the published checkpoints
state (T5 1.1: Lester et al. 2021, table 4; T5 1.0: the sizes of the released
checkpoints; mT5: Xue et al. 2021, table 1; ByT5: Xue et al. 2022, table 1).
"""

import math
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from prompt_tuning import command_line, prompts
from prompt_tuning import eval as eval_command
from prompt_tuning.data import files as file_tasks
from prompt_tuning.models import encoder_decoder
from prompt_tuning.train import adafactor, settings
from prompt_tuning.train import prompts as train_prompts

CONFIGS = command_line.PACKAGE / "configs"
TESTS = pathlib.Path(__file__).parent
SIZES = ("small", "base", "large", "xl", "xxl")
WIDTHS = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
VOCABULARY = "--gin.VOCABULARY_FILE='spiece.model'"
# Layers that are traced once: the counts are the same, in a tenth of the time.
SCAN = "--gin.SCAN_LAYERS=True"


@pytest.fixture
def configure(clean_gin):
  """Reads gin files of the package, by names without `.gin`, and flags."""

  def read(*arguments):
    clean_gin.clear_config()
    command_line.configure([
        a if a.startswith("--") else f"--gin_file={CONFIGS}/{a}.gin"
        for a in arguments])
    return clean_gin

  return read


def build_model(gin):
  return gin.get_configurable(encoder_decoder.EncoderDecoderModel)()


def count(shapes):
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def test_no_file_is_forgotten():
  """A new gin file, or itself with a prompt, must be named in a test."""
  texts = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
  named = set(re.findall(r"\w+", texts))
  names = {path.stem for path in CONFIGS.rglob("*.gin")}
  assert {n for n in names if not named & {
      n, f"{n}_prompt", n.removesuffix("_prompt")}} == set()


def test_every_folder_is_a_package():
  """gin reads files of an installed wheel through their packages."""
  folders = {path.parent for path in CONFIGS.rglob("*.gin")}
  assert all((folder / "__init__.py").exists() for folder in folders)


def test_every_file_says_what_it_provides_and_requires():
  for path in CONFIGS.rglob("*.gin"):
    head = path.read_text().split("\n\n")[0]
    assert "# Provides:" in head, path
    assert "# Requires:" in head or "sizes" in str(path), path


# The base model's parameters, and how exactly they were published.
PUBLISHED = {
    "t5_1_1_small": (76_961_152, 0), "t5_1_1_base": (247_577_856, 0),
    "t5_1_1_large": (783_150_080, 0), "t5_1_1_xl": (2_849_757_184, 0),
    "t5_1_1_xxl": (11_135_332_352, 0),
    "t5_1_0_small": (60_506_624, 0), "t5_1_0_base": (222_903_552, 0),
    "t5_1_0_large": (737_668_096, 0), "t5_1_0_3b": (2_851_598_336, 0),
    "t5_1_0_11b": (11_307_321_344, 0),
    "mt5_small": (300e6, 5e6), "mt5_base": (580e6, 5e6),
    "mt5_large": (1.2e9, 0.05e9), "mt5_xl": (3.7e9, 0.05e9),
    "mt5_xxl": (13e9, 0.5e9),
    "byt5_small": (300e6, 5e6), "byt5_base": (582e6, 0.5e6),
    "byt5_large": (1.23e9, 0.005e9), "byt5_xl": (3.74e9, 0.005e9),
    "byt5_xxl": (12.9e9, 0.05e9)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(configure, name):
  flags = [] if name.startswith("byt5") else [VOCABULARY]
  model = build_model(configure(f"models/{name}_prompt", *flags, SCAN))
  shapes, axes = model.abstract()
  assert jax.tree.structure(shapes) == jax.tree.structure(
      axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
  prompt = shapes["encoder"].pop("prompt")["prompt"]["prompt"]
  assert prompt.shape == (100, model.module.config.embed_dim)
  published, tolerance = PUBLISHED[name]
  assert abs(count(shapes) - published) <= tolerance


def test_scanned_layers_have_as_many_parameters(configure):
  for name in ("t5_1_1_small", "t5_1_0_small"):
    model = build_model(configure(f"models/{name}_prompt", VOCABULARY))
    shapes, _ = model.abstract()
    assert count(shapes) == PUBLISHED[name][0] + 100 * 512


@pytest.mark.parametrize("size", SIZES)
def test_plain_template_takes_a_size(configure, size):
  model = build_model(configure(
      "models/t5_1_1", f"models/sizes/{size}", VOCABULARY, SCAN))
  shapes, _ = model.abstract()
  assert count(shapes) == PUBLISHED[f"t5_1_1_{size}"][0]


@pytest.mark.parametrize("template, size, expected", [
    ("t5_1_1_prompt", "base", "t5_1_1_base"),
    ("mt5_prompt", "small", "mt5_small"),
    ("t5_1_0_prompt", "t5_1_0_base", "t5_1_0_base"),
    ("byt5_prompt", "byt5_small", "byt5_small")])
def test_prompt_templates_take_a_size(configure, template, size, expected):
  model = build_model(configure(
      f"models/{template}", f"models/sizes/{size}", VOCABULARY, SCAN,
      "--gin.PROMPT_LENGTH=20"))
  shapes, _ = model.abstract()
  assert shapes["encoder"].pop("prompt")["prompt"]["prompt"].shape[0] == 20
  published, tolerance = PUBLISHED[expected]
  assert abs(count(shapes) - published) <= tolerance


def test_t5_1_0_has_relu_and_tied_logits(configure):
  model = build_model(configure("models/t5_1_0_small_prompt", VOCABULARY))
  assert model.module.config.mlp_activations == ("relu",)
  shapes, _ = model.abstract()
  assert "logits_dense" not in shapes["decoder"]
  assert set(shapes["encoder"]["layers_0"]["mlp"]) == {"wi", "wo"}


def test_byt5_reads_bytes(configure):
  model = build_model(configure("models/byt5_small_prompt"))
  assert model.input_vocabulary.encode("é") == [0xC3 + 3, 0xA9 + 3]
  assert model.input_vocabulary.vocab_size == model.module.config.vocab_size


def test_default_needs_nothing(configure):
  plain = build_model(configure("models/t5_1_1_default"))
  shapes, _ = plain.abstract()
  plain_count = count(shapes)
  prompted = build_model(configure("models/t5_1_1_default_prompt"))
  shapes, _ = prompted.abstract()
  assert count(shapes) == plain_count + 100 * 192
  vocabulary = prompted.input_vocabulary
  assert vocabulary.vocab_size == prompted.module.config.vocab_size


def test_architectures_alone(configure):
  """A T5X user includes them under a model of T5X's own."""
  size = [f"--gin.{line.replace(' ', '')}" for line in
          (CONFIGS / "models/sizes/small.gin").read_text().splitlines()
          if " = " in line]
  gin = configure(
      "architectures/t5_1_1", *size, "--gin.NUM_EMBEDDINGS=128")
  assert gin.query_parameter("t5.Config.vocab_size")
  gin = configure(
      "architectures/prompt_encoder_t5_1_1", *size,
      "--gin.NUM_EMBEDDINGS=128", "--gin.PROMPT=None")
  assert gin.query_parameter("t5.EncoderDecoder.prompt_factory")


DECODING = {"greedy": 1, "beam_search": 4, "nucleus_sampling": 1}


@pytest.mark.parametrize("name", DECODING)
@pytest.mark.parametrize("scan", [False, True])
def test_decoding(configure, name, scan):
  model = build_model(configure(
      "models/t5_1_1_default_prompt", f"models/decoding/{name}",
      f"--gin.SCAN_LAYERS={scan}"))
  params, _ = model.abstract()
  batch = {"encoder_input_tokens": jax.ShapeDtypeStruct((3, 7), jnp.int32),
           "decoder_target_tokens": jax.ShapeDtypeStruct((3, 5), jnp.int32)}
  tokens, scores = jax.eval_shape(
      model.decodes, params, batch, jax.random.PRNGKey(0))
  assert tokens.shape == (3, DECODING[name], 5)
  assert scores.shape == (3, DECODING[name])


def test_decoding_options_are_t5xs(configure):
  gin = configure("models/t5_1_1_default_prompt",
                  "models/decoding/beam_search")
  assert gin.query_parameter("%NUM_BEAMS") == 4
  assert gin.query_parameter("%LENGTH_PENALTY") == 0.6
  gin = configure("models/t5_1_1_default_prompt",
                  "models/decoding/nucleus_sampling")
  assert [gin.query_parameter(f"%{name}") for name in (
      "TEMPERATURE", "TOP_K", "TOP_P")] == [1.0, 0, 0.9]


PROMPTS = {
    "from_class_labels": ["CLASS_LABELS=['yes', 'no']"],
    "from_class_labels_numpy": ["CLASS_LABELS=['yes', 'no']",
                                "EMBEDDING_FILE='{table}'"],
    "from_embedded_string": ["PROMPT_TEXT='sort the array'",
                             "REPEAT_PROMPT_TEXT=True"],
    "from_file": ["PROMPT_FILE='{prompt}'"],
    "from_sampled_vocab": [],
    "from_sampled_vocab_numpy": ["EMBEDDING_FILE='{table}'"]}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(configure, name, tmp_path):
  """Each initialiser gives rows of the table, or the file itself."""
  from prompt_tuning import pretrained
  from prompt_tuning.checkpoints import base
  from prompt_tuning.formats import npy

  table = base.read_embedding_table(pretrained.path(), jnp.float32)
  npy.write(tmp_path / "table", table)
  npy.write(tmp_path / "prompt", table[50:60])
  flags = [f"--gin.{macro}".format(
      table=tmp_path / "table", prompt=tmp_path / "prompt")
           for macro in PROMPTS[name]]
  gin = configure("models/t5_1_1_default_prompt", f"prompts/{name}",
                  "--gin.PROMPT_LENGTH=10", *flags)
  module = gin.get_configurable(prompts.Prompt)()
  value = module.prompt_init(jax.random.PRNGKey(0), (10, table.shape[1]))
  assert value.shape == (10, table.shape[1])
  if name == "from_file":
    assert (value == table[50:60]).all()
    return
  rows = {row.tobytes() for row in table}
  sampled = value[2:] if "class_labels" in name else value
  assert all(row.tobytes() in rows for row in jax.device_get(sampled))
  if "class_labels" in name:
    ids = pretrained.vocabulary().encode("yes")
    assert jnp.allclose(value[0], table[jnp.array(ids)].mean(0), atol=1e-6)


RUNS = ("prompt_finetune", "prompt_eval", "prompt_infer", "pretrain",
        "quickstart")
PATHS = ["--gin.MODEL_DIR='run'", "--gin.TRAIN_STEPS=1000"]
DATA = ["--gin.MIXTURE_OR_TASK_NAME='docstring_package'",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}"]


@pytest.mark.parametrize("arguments, batch, splits", [
    (["models/t5_1_1_default_prompt", "runs/prompt_finetune", *PATHS, *DATA],
     128, {"train": "train", "train_eval": "validation",
           "infer_eval": "validation"}),
    (["models/t5_1_1_default", "runs/pretrain", *PATHS, *DATA], 128,
     {"train": "train", "infer_eval": "validation"}),
    (["runs/quickstart", *PATHS[:1]], 32,
     {"train": "train", "train_eval": "validation"})])
def test_training_runs(configure, arguments, batch, splits):
  gin = configure(*arguments)
  for scope, split in splits.items():
    with gin.config_scope(scope):
      dataset = gin.get_configurable(settings.DatasetConfig)()
    assert dataset.split == split
    assert dataset.mixture_or_task_name == "docstring_package"
    if scope == "train":
      assert dataset.batch_size == batch
  gin.get_configurable(settings.RestoreCheckpointConfig)()
  assert gin.get_configurable(settings.SaveCheckpointConfig)().keep == 1
  optimizer = gin.get_configurable(adafactor.Adafactor)()
  jax.eval_shape(optimizer.init, {"prompt": jnp.zeros((5, 8))})
  model = build_model(gin)
  params, _ = model.abstract()
  loss = {name: jax.ShapeDtypeStruct((4, 8), jnp.int32)
          for name in encoder_decoder.EncoderDecoderModel.features.names}
  total, _ = jax.eval_shape(model.loss, params, loss)
  assert total.shape == ()


@pytest.mark.parametrize("command, folder", [
    ("eval", "EVAL_OUTPUT_DIR"), ("infer", "INFER_OUTPUT_DIR")])
def test_runs_of_a_trained_prompt(configure, command, folder):
  gin = configure(
      "models/t5_1_1_default_prompt", f"runs/prompt_{command}", *DATA,
      "--gin.PROMPT_FILE='prompt.npy'", f"--gin.{folder}='out'")
  dataset = gin.get_configurable(settings.DatasetConfig)()
  assert dataset.split == "validation"
  restore = gin.get_configurable(settings.RestoreCheckpointConfig)()
  assert pathlib.Path(restore.path).name == "t5_1_1_docstrings"


def test_task_from_files(configure, tmp_path):
  data = tmp_path / "train.csv"
  data.write_text("text,label\nfine,1\n")
  gin = configure("tasks/from_files", f"--gin.TRAIN_FILE={str(data)!r}",
                  "--gin.LABELS={'1': 'positive'}")
  task = gin.get_configurable(file_tasks.FileTask)()
  [example] = task.examples("train")
  assert (example["inputs"], example["targets"]) == ("fine", "positive")


def test_combine_functions_can_be_bound(configure):
  """The prompt after the first token, or after the input."""
  for name in ("prefix_prompt_after_bos", "suffix_prompt"):
    gin = configure("models/t5_1_1_default_prompt",
                    "--gin_bindings=train_prompts.Prompt.combine = "
                    f"@train_prompts.{name}")
    model = build_model(gin)
    combine = model.module.prompt_factory().combine
    assert combine.__name__ == name
    shapes, _ = model.abstract()
    assert "prompt" in shapes["encoder"]


def test_names_of_the_original_can_be_bound(configure):
  """Command lines that were written for it change `t5x.train` alone."""
  gin = configure(
      "models/t5_1_1_default_prompt", "prompts/from_class_labels",
      "runs/prompt_finetune", *PATHS, *DATA,
      "--gin.CLASS_LABELS=['yes']", "--gin.INITIAL_CHECKPOINT_PATH='base'",
      "--gin.DROPOUT_RATE=0.1", "--gin.PROMPT_REGEX=['.*/prompt/.*']",
      "--gin.ACTIVATION_DTYPE='bfloat16'", "--gin.SCALE=1.0",
      "--gin.ACTIVATION_PARTITIONING_DIMS=1", "--gin.LAYER_REMAT='full'",
      "--gin.MIXTURE_OR_TASK_MODULE='my_project.tasks'",
      "--gin.USE_CACHED_TASKS=False", "--gin.EVAL_STEPS=3",
      "--gin.EVAL_PERIOD=5", "--gin.Z_LOSS=0.0", "--gin.LABEL_SMOOTHING=0.1",
      "--gin.LOSS_NORMALIZING_FACTOR=2", "--gin.RANDOM_SEED=7",
      "--gin.utils.SaveCheckpointConfig.keep=3",
      "--gin.utils.SaveCheckpointConfig.period=11",
      "--gin.utils.RestoreCheckpointConfig.path='other'",
      "--gin.train/utils.DatasetConfig.batch_size=4",
      "--gin.infer_eval/utils.DatasetConfig.split='test'",
      "--gin.utils.DatasetConfig.use_cached=True",
      "--gin.utils.create_learning_rate_scheduler.factors="
      "'constant * linear_warmup'",
      "--gin.utils.create_learning_rate_scheduler.base_learning_rate=0.5",
      "--gin.utils.create_learning_rate_scheduler.warmup_steps=10",
      "--gin.partitioning.PjitPartitioner.num_partitions=2",
      "--gin.trainer.Trainer.num_microbatches=2",
      "--gin.adafactor.Adafactor.decay_rate=0.7",
      "--gin.prompt_init/linen.initializers.uniform.scale=0.25",
      "--gin.prompt_init/prompts.from_sample_of_embeddings."
      "population_size=100",
      "--gin.seqio.SentencePieceVocabulary.sentencepiece_model_file='v'",
      "--gin.train_script.train.random_seed=3", "--gin.train.eval_steps=9")
  for name, value in {
      "sharding.make_mesh.model": 2,
      "schedules.create_learning_rate_scheduler.base_learning_rate": 0.5,
      "train.eval_steps": 9, "train.random_seed": 3,
      "%NUM_MICROBATCHES": 2, "%VOCABULARY_FILE": "v",
      "utils.SaveCheckpointConfig.period": 11}.items():
    assert gin.query_parameter(name) == value
  save = gin.get_configurable(settings.SaveCheckpointConfig)()
  assert (save.keep, save.period) == (3, 11)


def test_train_prompts_is_what_gin_makes(configure):
  gin = configure("models/t5_1_1_default_prompt")
  module = gin.get_configurable(train_prompts.Prompt)()
  assert module.prompt.length == 100


def test_eval_is_configurable_by_its_name(configure):
  gin = configure(
      "models/t5_1_1_default_prompt", "runs/prompt_eval", *DATA,
      "--gin.PROMPT_FILE='prompt.npy'", "--gin.EVAL_OUTPUT_DIR='out'",
      "--gin.eval_script.evaluate.random_seed=4")
  assert gin.query_parameter("evaluate.random_seed") == 4
  assert eval_command.evaluate.__name__ == "evaluate"
