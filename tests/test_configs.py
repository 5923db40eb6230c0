"""Every gin file parses with its companions and builds without any memory.

Oracles: the parameter counts that the papers and the published checkpoints
state (T5 1.1: Lester et al. 2021, table 4; T5 1.0: the sizes of the released
checkpoints; mT5: Xue et al. 2021, table 1; ByT5: Xue et al. 2022, table 1).
"""

import ast
import itertools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import command_line, errors, masks, prompts
from prompt_tuning import eval as eval_command
from prompt_tuning.data import files as file_tasks
from prompt_tuning.methods import wayward
from prompt_tuning.models import encoder_decoder
from prompt_tuning.train import adafactor, settings
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import state as state_lib

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
    # Sizes of the original's files; what they are of is in their names alone.
    "mt5_80b": (80e9, 5e9), "mt5_150b": (150e9, 5e9),
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


def test_the_largest_keeps_nothing_for_backpropagation(configure):
  """Its layers are stacked and recomputed, its table has spare rows."""
  config = build_model(
      configure("models/mt5_150b_prompt", VOCABULARY)).module.config
  assert (config.scan_layers, config.remat, config.vocab_size) == (
      True, "full", 250368)


@pytest.mark.parametrize("size", SIZES)
def test_plain_template_takes_a_size(configure, size):
  model = build_model(configure(
      "models/t5_1_1", f"models/sizes/{size}", VOCABULARY, SCAN))
  shapes, _ = model.abstract()
  assert count(shapes) == PUBLISHED[f"t5_1_1_{size}"][0]


@pytest.mark.parametrize("template, size, expected", [
    ("t5_1_1_prompt", "base", "t5_1_1_base"),
    ("mt5_prompt", "small", "mt5_small"),
    ("mt5_prompt", "80b", "mt5_80b"), ("mt5_prompt", "150b", "mt5_150b"),
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
  for name in ("t5_1_1", "t5_1_1_flaxformer"):
    gin = configure(
        f"architectures/{name}", *size, "--gin.NUM_EMBEDDINGS=128")
    assert gin.query_parameter("t5.Config.vocab_size")
  for name in ("prompt_encoder_t5_1_1", "prompt_encoder_t5_1_1_flaxformer"):
    gin = configure(
        f"architectures/{name}", *size, "--gin.NUM_EMBEDDINGS=128",
        "--gin.PROMPT=None")
    assert gin.query_parameter("t5.EncoderDecoder.prompt_factory")
  gin = configure(
      "architectures/multi_task_prompt_encoder_t5_1_1", *size,
      "--gin.NUM_EMBEDDINGS=128", "--gin.PROMPT=None", "--gin.PROMPT_LENGTH=5")
  assert gin.query_parameter("prompt_encoder_attention_mask.multitask")
  gin = configure(
      "architectures/per_layer_prompt_encoder_t5_1_1", *size,
      "--gin.NUM_EMBEDDINGS=128", "--gin.PROMPT=None",
      "--gin.PER_LAYER_PROMPT=None")
  assert gin.query_parameter("t5.EncoderDecoder.layer_prompt_factory")
  gin = configure(
      "architectures/ia3_t5_1_1", *size, "--gin.NUM_EMBEDDINGS=128")
  assert gin.query_parameter("%DELTA")


DECODING = {"greedy": 1, "beam_search": 4, "nucleus_sampling": 1,
            "beam_sampling": 5}


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
          for name in model.features.names}
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


# Every macro that users of the original bind with its t5_1_1 files, and every
# binding: what is typed, and the name and value here.
ORIGINAL_MACROS = {
    "MODEL_DIR": "'elsewhere'", "MIXTURE_OR_TASK_NAME": "'other'",
    "MIXTURE_OR_TASK_MODULE": "'my_project.tasks'",
    "TASK_FEATURE_LENGTHS": "{'inputs': 512, 'targets': 8}",
    "INITIAL_CHECKPOINT_PATH": "'base'", "TRAIN_STEPS": "1_150_000",
    "BATCH_SIZE": "32", "USE_CACHED_TASKS": "False", "DROPOUT_RATE": "0.1",
    "PROMPT": "@train_prompts.Prompt", "PROMPT_LENGTH": "20",
    "CLASS_LABELS": "['yes']", "PROMPT_REGEX": "['.*/prompt/.*']",
    "TRAINABLE_REGEX": "['.*/prompt/.*']", "NUM_EMBEDDINGS": "32128",
    "VOCABULARY": "@vocabularies.SentencePieceVocabulary()",
    "ARCHITECTURE": "@t5.EncoderDecoder()",
    "OPTIMIZER": "@adafactor.Adafactor()", "Z_LOSS": "0.0",
    "MODEL": "@models.EncoderDecoderModel()",
    "LABEL_SMOOTHING": "0.1", "LOSS_NORMALIZING_FACTOR": "2",
    "ACTIVATION_DTYPE": "'bfloat16'", "ACTIVATION_PARTITIONING_DIMS": "1",
    "SCALE": "1.0", "LAYER_REMAT": "'full'", "NUM_HEADS": "2",
    "NUM_ENCODER_LAYERS": "2", "NUM_DECODER_LAYERS": "2", "HEAD_DIM": "4",
    "EMBED_DIM": "8", "MLP_DIM": "16", "EVAL_STEPS": "3", "EVAL_PERIOD": "5",
    "RANDOM_SEED": "7"}
ORIGINAL_BINDINGS = [
    ("utils.SaveCheckpointConfig.keep", "3"),
    ("utils.SaveCheckpointConfig.period", "11"),
    ("utils.RestoreCheckpointConfig.path", "'other'"),
    ("utils.DatasetConfig.split", "'test'"),
    ("utils.DatasetConfig.batch_size", "4"),
    ("utils.DatasetConfig.use_cached", "True"),
    ("train/utils.DatasetConfig.batch_size", "4"),
    ("train_eval/utils.DatasetConfig.split", "'test'"),
    ("infer_eval/utils.DatasetConfig.use_cached", "True"),
    ("utils.create_learning_rate_scheduler.factors",
     "'constant * linear_warmup'"),
    ("utils.create_learning_rate_scheduler.base_learning_rate", "0.5"),
    ("utils.create_learning_rate_scheduler.warmup_steps", "10"),
    ("utils.create_learning_rate_scheduler.steps_per_decay", "4000"),
    ("partitioning.PjitPartitioner.num_partitions", "2",
     "sharding.make_mesh.model", 2),
    ("partitioning.PjitPartitioner.model_parallel_submesh", "(4, 4, 1, 2)",
     "sharding.make_mesh.model", 32),
    ("trainer.Trainer.num_microbatches", "2", "%NUM_MICROBATCHES", 2),
    ("seqio.SentencePieceVocabulary.sentencepiece_model_file", "'v'",
     "%VOCABULARY_FILE", "v"),
    ("adafactor.Adafactor.decay_rate", "0.7"),
    ("adafactor.Adafactor.multiply_by_parameter_scale", "True"),
    ("adafactor.Adafactor.step_offset", "1_100_000"),
    ("prompt_init/linen.initializers.uniform.scale", "0.25"),
    ("prompt_init/prompts.from_sample_of_embeddings.population_size", "100"),
    ("prompt_init/prompts.from_samples_of_embeddings.population_size", "90",
     "prompt_init/prompts.from_sample_of_embeddings.population_size", 90),
    ("prompt_init/prompts.from_array.prompt",
     "@prompt_init/prompts.np_load()"),
    ("prompt_init/prompts.np_load.path", "'prompt.npy'"),
    ("prompt_init/prompts.np_load.restore_dtype", "'float32'"),
    ("prompt_init/prompts.t5x_load.checkpoint_path", "'base'"),
    ("prompt_init/prompts.t5x_load.variable_path",
     "'target/token_embedder/embedding'"),
    ("prompt_init/prompts.from_embedded_list.texts", "['yes', 'no']"),
    ("prompt_init/prompts.from_embedded_string.text", "'sort'"),
    ("train_script.train.random_seed", "3"), ("train.eval_steps", "9")]


def test_macros_of_the_original_can_be_bound(configure):
  """Command lines that were written for it change `t5x.train` alone."""
  gin = configure(
      "models/t5_1_1_base_prompt", "prompts/from_class_labels",
      "runs/prompt_finetune", VOCABULARY,
      *(f"--gin.{name}={value}" for name, value in ORIGINAL_MACROS.items()))
  for name, value in ORIGINAL_MACROS.items():
    if value[0] != "@":
      assert gin.query_parameter(f"%{name}") == ast.literal_eval(value)
  config = build_model(gin).module.config
  assert (config.dropout_rate, config.dtype, config.remat) == (
      0.1, "bfloat16", "full")
  assert gin.query_parameter("%USE_DROPOUT")  # at DROPOUT_RATE


@pytest.mark.parametrize(
    "name, value, here", [(*b[:2], b[2:]) for b in ORIGINAL_BINDINGS])
def test_bindings_of_the_original(configure, name, value, here):
  gin = configure(
      "models/t5_1_1_default_prompt", "prompts/from_class_labels",
      "runs/prompt_finetune", *PATHS, *DATA, "--gin.CLASS_LABELS=['yes']",
      "--gin.INITIAL_CHECKPOINT_PATH='base'", f"--gin.{name}={value}")
  if value[0] != "@":
    found, expected = here or (name, ast.literal_eval(value))
    # T5X's schedule stands in `utils`, ours in `schedules`.
    assert gin.query_parameter(
        found.replace("utils.create_", "schedules.create_")) == expected


def test_a_start_of_the_original_can_be_bound(configure, tmp_path):
  """Both spellings of its README, and its `from_array` over `np_load`."""
  from prompt_tuning.formats import npy

  table = np.arange(200 * 192, dtype=np.float32).reshape(200, 192)
  npy.write(tmp_path / "table", table)
  for name in ("from_sample_of_embeddings", "from_samples_of_embeddings"):
    gin = configure(
        "models/t5_1_1_default_prompt", "prompts/from_sampled_vocab_numpy",
        f"--gin.EMBEDDING_FILE='{tmp_path}/table'",
        f"--gin.prompt_init/prompts.{name}.population_size=3")
    value = gin.get_configurable(prompts.Prompt)().prompt_init(
        jax.random.PRNGKey(0), (3, 192))
    assert sorted(map(tuple, value)) == sorted(map(tuple, table[:3]))


def test_what_only_t5x_needs_is_noted(configure, capsys):
  configure(
      "models/t5_1_1_default_prompt", "runs/prompt_finetune", *PATHS, *DATA,
      "--gin.partitioning.PjitPartitioner.logical_axis_rules="
      "@partitioning.standard_logical_axis_rules()",
      "--gin.utils.RestoreCheckpointConfig.assignment_map="
      "((r'^.*prompt.*$', None),)",
      "--gin.utils.RestoreCheckpointConfig.fallback_to_scratch=True",
      "--gin.train.use_orbax=False")
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 4
  assert all(line.startswith("note: --gin.") and "has no effect here: " in line
             for line in lines)


@pytest.mark.parametrize("first, moves", [(1_100_000, True), (None, False)])
def test_steps_of_the_originals_recipe(
    command, tiny_flags, tmp_path, first, moves):
  """Counted from the base's step, each has the learning rate's length.

  Oracle: 0.3000, measured on the original's optimizer.
  """
  from prompt_tuning.formats import npy

  last = (first or 0) + 4
  outcome = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(tmp_path), TRAIN_STEPS=last,
      SAVE_PERIOD=1), f"--gin.INITIAL_STEP={first}",
      "--gin.train_script.train.infer_eval_dataset_cfg=None",
      "--gin.train_script.train.train_eval_dataset_cfg=None")
  assert outcome.status == 0, outcome.err
  prompts_at = [
      npy.read(tmp_path / "numpy_checkpoints" / f"checkpoint_{step}"
               / "encoder.prompt.prompt.prompt")
      for step in range(last - 3, last + 1)]
  lengths = [np.sqrt(np.mean((after - before) ** 2))
             for before, after in itertools.pairwise(prompts_at)]
  assert np.allclose(lengths, 0.3, atol=1e-4) == moves


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


# ---------------------------------------------- the original's `extended` files


def trained_sizes(model):
  """Sizes of what TRAINABLE_REGEX matches, by path."""
  trainable, frozen = state_lib.split(
      model.abstract()[0], command_line.macro("TRAINABLE_REGEX"))
  return {path: math.prod(leaf.shape) for path, leaf in
          state_lib.flatten(trainable).items()}, count(frozen)


MULTI_TASK = (
    "multi_task_t5_1_1_small", "multi_task_t5_1_1_base",
    "multi_task_t5_1_1_large", "multi_task_t5_1_1_xl",
    "multi_task_t5_1_1_xxl")


@pytest.mark.parametrize("name", MULTI_TASK)
def test_multi_task(configure, name):
  size = name.rsplit("_", 1)[1]
  gin = configure(
      f"models/{name}_prompt",
      "runs/multitask_prompt_finetune", VOCABULARY, SCAN, *PATHS, *DATA,
      "--gin.INITIAL_CHECKPOINT_PATH='base'")
  sizes, frozen = trained_sizes(build_model(gin))
  width = WIDTHS[size]
  assert frozen == PUBLISHED[f"t5_1_1_{size}"][0]
  assert sizes == {
      "encoder/prompt/prompt/shared_prompt": 100 * width,
      "encoder/prompt/prompt/task_prompts/embedding": 9 * 100 * width}


@pytest.mark.parametrize("kind, flags, shared, task", [
    ("Concat", ["TASK_LENGTH=3"], 5 * 512, 3 * 512),
    ("ConcatFeatures", ["SHARED_FEATURES=500"], 5 * 500, 5 * 12),
    ("Project", ["SHARED_FEATURES=20"], 5 * 20, 21 * 512)])
def test_multi_task_combinations(configure, kind, flags, shared, task):
  gin = configure(
      "models/multi_task_t5_1_1_prompt", "models/sizes/small", VOCABULARY,
      SCAN, "--gin.NUM_TASKS=2", "--gin.PROMPT_LENGTH=5",
      f"--gin.MULTITASK_PROMPT=@multitask_prompts.{kind}MultiTaskPrompt()",
      *(f"--gin.{flag}" for flag in flags))
  sizes, _ = trained_sizes(build_model(gin))
  assert list(sizes.values()) == [shared, 2 * task]
  door = build_model(gin).module.prompt_factory()
  assert list(door.to_task_idx(jnp.array([32099, 32098]))) == [0, 1]


def test_the_originals_pattern_is_refused(configure):
  """It leaves the shared prompt untrained, without a word."""
  model = build_model(configure(
      "models/multi_task_t5_1_1_small_prompt", VOCABULARY, SCAN,
      "--gin.PROMPT_REGEX=['.*/shared_prompt/.*', '.*/task_prompts/.*']"))
  with pytest.raises(errors.UserError, match="shared_prompt/.*no parameter"):
    trained_sizes(model)


@pytest.mark.parametrize("combine", ["replace_prompt", "add_prompt"])
def test_per_layer(configure, combine):
  """`t5_1_1_per_layer_prompt` and a size; `mt5_per_layer_prompt` below."""
  flags = [] if combine == "replace_prompt" else [
      "--gin.train_prompts.Prompt.prompt=@prompts.Prompt()",
      "--gin.per_layer/train_prompts.Prompt.combine=@per_layer.add_prompt"]
  model = build_model(configure(
      "models/t5_1_1_per_layer_prompt", "models/sizes/small", VOCABULARY,
      *flags))
  sizes, frozen = trained_sizes(model)
  assert frozen == PUBLISHED["t5_1_1_small"][0]
  wanted = {f"encoder/layers_{i}/prompt/prompt/prompt": 10 * 512
            for i in range(8)}
  if flags:
    wanted["encoder/prompt/prompt/prompt"] = 10 * 512
  assert sizes == wanted
  assert model.module.layer_prompt_factory().combine.__name__ == combine


def test_per_layer_of_mt5(configure):
  model = build_model(configure(
      "models/mt5_per_layer_prompt", "models/sizes/small", VOCABULARY, SCAN))
  sizes, frozen = trained_sizes(model)
  assert sizes == {"encoder/layers/prompt/prompt/prompt": 8 * 10 * 512}
  published, tolerance = PUBLISHED["mt5_small"]
  assert abs(frozen - published) <= tolerance


def test_ia3_of_the_original(configure):
  """`ia3_t5_1_1`, a size and `ia3_finetune`: 3 or 5 vectors a layer."""
  gin = configure(
      "models/ia3_t5_1_1", "models/sizes/small", "runs/ia3_finetune",
      VOCABULARY, SCAN, *PATHS, *DATA, "--gin.INITIAL_CHECKPOINT_PATH='base'")
  sizes, frozen = trained_sizes(build_model(gin))
  assert frozen == PUBLISHED["t5_1_1_small"][0]
  assert sum(sizes.values()) == 8 * (2 * 384 + 1024) + 8 * (4 * 384 + 1024)
  assert all(path.endswith("_conv/ia3_scaling") for path in sizes)
  assert gin.query_parameter("%LEARNING_RATE") == 3e-3


def test_wayward(configure):
  """The prompt starts where it is held, at the text's pieces."""
  from prompt_tuning import pretrained
  from prompt_tuning.checkpoints import base

  table = base.read_embedding_table(pretrained.path(), jnp.float32)
  gin = configure(
      "models/wayward_t5_1_1_prompt", "models/sizes/default",
      "runs/prompt_finetune", *PATHS, *DATA, "--gin.NUM_EMBEDDINGS=4096",
      "--gin.TASK_STRING='is it {} or not'", "--gin.VERBALIZERS=['sorted']",
      f"--gin.VOCABULARY_FILE={str(pretrained.vocabulary_path())!r}",
      f"--gin.INITIAL_CHECKPOINT_PATH={str(pretrained.path())!r}",
      "--gin.NUM_MICROBATCHES=2")
  model = gin.get_configurable(wayward.WaywardPromptEncoderDecoderModel)()
  ids = pretrained.vocabulary().encode("is it sorted or not")
  assert jnp.array_equal(model.discrete_prompt, table[jnp.array(ids)])
  assert (model.gamma, model.num_microbatches) == (0.01, 2)
  prompt = model.module.prompt_factory().prompt
  assert jnp.array_equal(
      prompt.prompt_init(None, (prompt.length, table.shape[1])),
      model.discrete_prompt)


@pytest.mark.parametrize("name, size", [
    ("wayward_t5_1_1_base", "base"), ("wayward_t5_1_1_large", "large")])
def test_wayward_sizes(configure, name, size, shared_data):
  """The text has 100 of T5's pieces."""
  gin = configure(
      f"models/{name}_prompt",
      f"--gin.VOCABULARY_FILE={str(shared_data / 't5x' / 't5_vocab')!r}",
      "--gin.INITIAL_CHECKPOINT_PATH='base'")
  assert gin.query_parameter("%EMBED_DIM") == WIDTHS[size]
  assert gin.get_configurable(wayward.count_pieces)() == 100


def test_attention(configure):
  """What prompts/attention.gin says reaches the encoder, of any prompt."""
  for model, multitask in (("t5_1_1_default_prompt", False),
                           ("multi_task_t5_1_1_small_prompt", True)):
    build = build_model(configure(
        f"models/{model}", "prompts/attention",
        *([VOCABULARY] if multitask else []), "--gin.PROMPT_LENGTH=2",
        "--gin.ALLOWABLE_ATTENTION=['prompt->prompt;causal']"))
    tokens = jnp.array([[9, 8, 7, 0]])
    found = build.module.encoder_mask_factory()(tokens)
    assert jnp.array_equal(found, masks.prompt_encoder_attention_mask(
        2, ["prompt->prompt;causal"], multitask)(tokens))
    jax.eval_shape(build.init, jax.random.PRNGKey(0))
