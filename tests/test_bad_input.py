"""Bad input ends in one sentence, exit status 2, and nothing half-written."""

import errno
import os
import re
import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning.checkpoints import base, hugging_face, runs
from prompt_tuning.formats import card, npy
from prompt_tuning.train import setup
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib

STEPS = {"TRAIN_STEPS": 6, "EVAL_PERIOD": 3, "SAVE_PERIOD": 3,
         "LOG_PERIOD": 2}


FROM_FILE = "--gin_file=prompt_tuning/configs/prompts/from_file.gin"


@pytest.fixture
def refused(command, tmp_path, tiny_flags):
  """Runs a command that must refuse; gives its sentence.

  `train` writes into tmp_path/run, `eval` and `infer` into tmp_path/out.
  """
  output = tmp_path / "output"

  def run(name, *flags, **macros):
    file = "prompt_finetune" if name == "train" else f"prompt_{name}"
    folder = {"train": "MODEL_DIR", "eval": "EVAL_OUTPUT_DIR",
              "infer": "INFER_OUTPUT_DIR"}[name]
    macros = {folder: str(output)} | (
        STEPS if name == "train" else {}) | macros
    given = tiny_flags(file, **macros)
    if name == "train" and "PROMPT_FILE" in macros:
      given.insert(1, FROM_FILE)
    outcome = command(name, *given, *flags)
    assert outcome.status == 2, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.err
    # Tokenised examples are whole, and are used by the corrected command.
    written = [
        path for path in output.rglob("*") if path.is_file()
        and path.relative_to(output).parts[0] != "cache"]
    assert written == []
    return lines[0].removeprefix("error: ")

  return run


@pytest.fixture
def prompt_file(tmp_path):
  """A good prompt for the tiny model, without a card."""
  path = tmp_path / "good.npy"
  npy.write(path, np.full((5, 8), 0.25))
  return path


# ------------------------------------------------------------------ the prompt


@pytest.mark.parametrize("name", ["eval", "infer"])
@pytest.mark.parametrize("shape", [(4, 8), (5, 16)])
def test_prompt_of_the_wrong_shape(refused, tmp_path, name, shape):
  path = tmp_path / "prompt.npy"
  npy.write(path, np.ones(shape))
  found = refused(name, PROMPT_FILE=str(path))
  assert str(shape) in found and "(5, 8)" in found
  assert "PROMPT_LENGTH" in found


def test_prompt_of_one_dimension(refused, tmp_path):
  path = tmp_path / "prompt.npy"
  np.save(path, np.ones(8, np.float32))
  assert re.search(r"prompt.npy.*shape \(8,\)", refused(
      "eval", PROMPT_FILE=str(path)))


@pytest.mark.parametrize("name", ["eval", "train"])
def test_prompt_of_another_base(refused, prompt_file, name):
  card.write_card(
      prompt_file, base_model="their model", base_fingerprint="0" * 64,
      task="sst2", metric={}, step=3, settings={})
  found = refused(name, PROMPT_FILE=str(prompt_file))
  assert re.search(r"good.npy' was trained on .*'their model'", found)
  assert "load the base model" in found


@pytest.mark.parametrize("name", ["infer", "train"])
def test_prompt_that_is_not_the_one_on_its_card(
    refused, prompt_file, tiny_base, name):
  card.write_card(
      prompt_file, base_model=str(tiny_base),
      base_fingerprint=base.fingerprint(tiny_base), task="sst2", metric={},
      step=3, settings={})
  npy.write(prompt_file, np.full((5, 8), 0.5))
  assert "is not the file that its card" in refused(
      name, PROMPT_FILE=str(prompt_file))


def test_training_starts_from_a_prompt_of_its_base(
    command, tiny_flags, prompt_file, tiny_base, tmp_path):
  """With its card, or with none. Oracle: the file, at the lowest rate."""
  for number in range(2):
    run = tmp_path / str(number)
    flags = tiny_flags(
        "prompt_finetune", MODEL_DIR=str(run), LEARNING_RATE=0.0,
        **STEPS | {"TRAIN_STEPS": 1}, PROMPT_FILE=str(prompt_file))
    flags.insert(1, FROM_FILE)
    outcome = command(
        "train", *flags, "--gin.adafactor.Adafactor.weight_decay_rate=0.0")
    assert outcome.status == 0, outcome.err
    np.testing.assert_allclose(
        npy.read(run / "prompt.npy"), npy.read(prompt_file), atol=1e-7)
    card.write_card(
        prompt_file, base_model=str(tiny_base),
        base_fingerprint=base.fingerprint(tiny_base), task="sst2", metric={},
        step=3, settings={})


def _truncated(content):
  return content[:-20]


def _claims_more(content):
  return content.replace(b"(5, 8)", b"(9, 8)")


def _not_numpy(content):
  return b"not numpy" + content


@pytest.mark.parametrize("damage", [_truncated, _claims_more, _not_numpy])
def test_damaged_prompt(refused, prompt_file, damage):
  prompt_file.write_bytes(damage(prompt_file.read_bytes()))
  assert "good.npy" in refused("eval", PROMPT_FILE=str(prompt_file))


def test_prompt_of_python_objects(refused, tmp_path):
  path = tmp_path / "prompt.npy"
  np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
  assert re.search("prompt.npy.*never read", refused(
      "eval", PROMPT_FILE=str(path)))


def test_prompt_that_is_not_there(refused):
  assert re.search("There is no nothing.npy", refused(
      "eval", PROMPT_FILE="nothing.npy"))


# -------------------------------------------------------------------- the base


@pytest.fixture
def damaged_base(tiny_base, tmp_path):
  """A copy of the base to spoil."""
  return shutil.copytree(tiny_base, tmp_path / "base")


def test_base_that_is_not_there(refused):
  assert "no checkpoint folder nowhere" in refused(
      "train", INITIAL_CHECKPOINT_PATH="nowhere")


def test_no_base_at_all(refused):
  assert "INITIAL_CHECKPOINT_PATH is not set" in refused(
      "train", "--gin.INITIAL_CHECKPOINT_PATH=None")


def test_truncated_base(refused, damaged_base):
  path = damaged_base / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-1000])
  assert re.search("model.safetensors.*damaged", refused(
      "train", INITIAL_CHECKPOINT_PATH=str(damaged_base)))


def test_base_without_weights(refused, damaged_base):
  (damaged_base / "model.safetensors").unlink()
  assert "has no weights" in refused(
      "train", INITIAL_CHECKPOINT_PATH=str(damaged_base))


def test_base_of_another_size(refused, tiny_base):
  found = refused("train", "--gin.EMBED_DIM=16")
  assert str(tiny_base) in found and "another size" in found


def test_base_with_more_layers(refused, tiny_base):
  found = refused("train", "--gin.NUM_ENCODER_LAYERS=1")
  assert str(tiny_base) in found and "NUM_ENCODER_LAYERS" in found


@pytest.mark.parametrize("name, flag", [
    ("train", "--gin.VOCABULARY_EXTRA_IDS=300"),
    ("train", "--gin.VOCABULARY=@vocabularies.ByteVocabulary()"),
    ("eval", "--gin.VOCABULARY_EXTRA_IDS=300")])
def test_vocabulary_of_another_table(refused, prompt_file, name, flag):
  macros = {} if name == "train" else {"PROMPT_FILE": str(prompt_file)}
  found = refused(name, flag, **macros)
  assert re.search(r"has (4,296|259) ids.*has 4,096 rows", found)
  assert "VOCABULARY_FILE" in found


def test_vocabulary_that_is_not_there(refused):
  assert "cannot read the vocabulary nothing.model" in refused(
      "train", VOCABULARY_FILE="nothing.model")


# -------------------------------------------------------------------- the data


def test_task_that_does_not_exist(refused):
  found = refused("train", MIXTURE_OR_TASK_NAME="docstring_pakage")
  assert "'docstring_pakage'" in found and "docstring_package" in found


def test_task_module_that_does_not_exist(refused):
  assert "'no_such_module.tasks' is not found" in refused(
      "train", MIXTURE_OR_TASK_MODULE="no_such_module.tasks")


def test_split_that_does_not_exist(refused):
  assert re.search("no split 'dev'.*train, validation", refused(
      "train", EVAL_SPLIT="dev"))


def _with(tmp_path, text):
  path = tmp_path / "bad.tsv"
  path.write_text(text)
  return str(path)


def test_data_file_that_is_not_there(refused):
  assert re.search(r"cannot read FileTask.train='nothing.tsv'", refused(
      "train", TRAIN_FILE="nothing.tsv"))


def test_empty_data_file(refused, tmp_path):
  assert re.search("bad.tsv.*is empty", refused(
      "train", TRAIN_FILE=_with(tmp_path, "")))


def test_data_file_with_a_header_alone(refused, tmp_path):
  assert re.search("bad.tsv has no rows", refused(
      "train", "--gin.COLUMNS=None",
      TRAIN_FILE=_with(tmp_path, "text\tlabel\n")))


def test_row_without_a_column(refused, tmp_path):
  found = refused("train", TRAIN_FILE=_with(tmp_path, "a\t1\nb\n"))
  assert re.search("bad.tsv line 2.*1 columns", found)


def test_column_that_no_row_has(refused):
  found = refused("train", INPUTS="{sentence}")
  assert re.search("train.tsv line 1.*'sentence'.*'text'", found)


def test_label_without_a_word(refused):
  found = refused("train", LABELS={"0": "empty"})
  assert re.search(r"train.tsv line \d+.*'1'", found)


def test_infer_refuses_bad_data_before_it_writes(
    refused, tmp_path, prompt_file):
  found = refused("infer", PROMPT_FILE=str(prompt_file),
                  VALIDATION_FILE=_with(tmp_path, "a\t1\nb\n"))
  assert "bad.tsv line 2" in found


# ----------------------------------------------------------------- the settings


@pytest.mark.parametrize("macros, sentence", [
    ({"BATCH_SIZE": 6}, "batch 6 not divisible by the 8 data shards"),
    ({"EVAL_BATCH_SIZE": 6}, "batch 6 not divisible by the 8 data shards"),
    ({"NUM_MICROBATCHES": 3}, "BATCH_SIZE 8.*NUM_MICROBATCHES 3"),
    ({"BATCH_SIZE": "8"}, "BATCH_SIZE.* is '8'"),
    ({"BATCH_SIZE": 0}, "BATCH_SIZE.* is 0"),
    ({"EVAL_PERIOD": 0}, "EVAL_PERIOD is 0"),
    ({"SAVE_PERIOD": -1}, "SAVE_PERIOD.* is -1"),
    ({"LOG_PERIOD": 1.5}, "LOG_PERIOD is 1.5"),
    ({"TRAIN_STEPS": "many"}, "TRAIN_STEPS is 'many'"),
    ({"TASK_FEATURE_LENGTHS": {"inputs": 16}}, "TASK_FEATURE_LENGTHS"),
    ({"TASK_FEATURE_LENGTHS": [16, 4]}, "TASK_FEATURE_LENGTHS"),
    ({"WEIGHT_DTYPE": "float33"}, "WEIGHT_DTYPE.*'float33'.*bfloat16"),
    ({"ACTIVATION_DTYPE": "float33"}, "ACTIVATION_DTYPE.*'float33'"),
    ({"LAYER_REMAT": "all"}, "LAYER_REMAT.*'all'"),
    ({"TRAINABLE_REGEX": [".*/promt/.*"]}, "'.*/promt/.*'.*matches no"),
    ({"TRAINABLE_REGEX": [".*/promt/.*"]}, "near it: encoder/prompt/"),
    ({"TRAINABLE_REGEX": []}, r"TRAINABLE_REGEX is \[\].*\['.*/prompt/.*'\]"),
    ({"TRAINABLE_REGEX": ".*"}, "TRAINABLE_REGEX is '.*'.*list"),
    ({"TRAINABLE_REGEX": [".+"]}, r"matches all \d+ param.*write \['\.\*'\]"),
    ({"TRAINABLE_REGEX": ["("]}, r"'\('.*not a regular expression"),
])
def test_settings(refused, macros, sentence):
  assert re.search(sentence, refused("train", **macros))


def test_mesh_that_does_not_fit(refused):
  assert re.search("make_mesh.*there are 8", refused(
      "train", "--gin.sharding.make_mesh.model=3"))


def test_packing(refused):
  assert "pack" in refused("train", "--gin.utils.DatasetConfig.pack=True")


def test_infer_mode(refused, prompt_file):
  found = refused(
      "infer", PROMPT_FILE=str(prompt_file), INFER_MODE="guess")
  assert "'guess'" in found and "predict or score" in found


# ------------------------------------------------------------------- the output


@pytest.mark.parametrize("name, macro", [
    ("train", "MODEL_DIR"), ("eval", "EVAL_OUTPUT_DIR"),
    ("infer", "INFER_OUTPUT_DIR")])
def test_output_folder_below_a_file(
    refused, prompt_file, tmp_path, name, macro):
  (tmp_path / "file").write_text("mine")
  macros = {} if name == "train" else {"PROMPT_FILE": str(prompt_file)}
  folder = tmp_path / "file" / "folder"
  found = refused(name, **macros, **{macro: str(folder)})
  assert found.startswith(f"{macro} {folder} cannot be written to")
  assert (tmp_path / "file").read_text() == "mine"


def test_disk_that_fills_up_keeps_the_last_good_checkpoint(
    command, tiny_flags, tmp_path, monkeypatch):
  durable = runs._durable_files
  calls = []

  def full_at_the_second(folder):
    calls.append(folder)
    if len(calls) == 2:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return durable(folder)

  monkeypatch.setattr(runs, "_durable_files", full_at_the_second)
  flags = tiny_flags(
      "prompt_finetune", MODEL_DIR=str(tmp_path), TRAIN_STEPS=6,
      SAVE_PERIOD=2, EVAL_PERIOD=6)
  stopped = command("train", *flags)
  assert stopped.status == 2
  assert "the disk is full" in stopped.err
  assert "checkpoint_2" in stopped.err
  assert (tmp_path / "checkpoint_2" / "manifest.json").exists()
  assert not list(tmp_path.glob("checkpoint_*.tmp"))
  resumed = command("train", *flags)
  assert resumed.status == 0, resumed.err
  assert (tmp_path / "checkpoint_6" / "manifest.json").exists()


# ------------------------------------------------------------------ divergence


def test_learning_rate_beyond_all_numbers(command, tiny_flags, tmp_path):
  outcome = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(tmp_path), **STEPS,
      LEARNING_RATE=1e39))
  assert outcome.status == 2
  error = outcome.err.splitlines()[-1]
  assert re.search("not finite at 3 steps in a row up to step 3", error)
  assert str(tmp_path) in error and "lower the learning rate" in error
  prompt = npy.read(tmp_path / "prompt.npy")
  assert (0 <= prompt).all() and (prompt < 0.5).all()  # as it was initialised


def test_divergence_keeps_the_last_good_state(
    command, tiny_flags, tmp_path, monkeypatch):
  """Good for four steps, then endless: the state is the one after step 4."""
  healthy, broken = tmp_path / "healthy", tmp_path / "broken"
  outcome = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(healthy), TRAIN_STEPS=4))
  assert outcome.status == 0, outcome.err

  def spoil(optimizer):
    return optax.chain(optimizer, optax.scale_by_schedule(
        lambda count: jnp.where(count < 4, 1.0, jnp.inf)))

  make_step, start = step_lib.make_train_step, setup.initial_state
  shapes = setup.state_shapes
  monkeypatch.setattr(
      step_lib, "make_train_step", lambda model, optimizer, *options:
      make_step(model, spoil(optimizer), *options))
  monkeypatch.setattr(
      setup, "state_shapes", lambda weights, optimizer, mesh:
      shapes(weights, spoil(optimizer), mesh))
  monkeypatch.setattr(
      setup, "initial_state", lambda weights, optimizer, shapes:
      start(weights, spoil(optimizer), shapes))
  outcome = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(broken), TRAIN_STEPS=20))
  assert outcome.status == 2
  assert "3 steps in a row up to step 7" in outcome.err.splitlines()[-1]
  np.testing.assert_array_equal(
      npy.read(broken / "prompt.npy"), npy.read(healthy / "prompt.npy"))
  [folder] = broken.glob("checkpoint_*")
  assert runs.damage(folder) is None


# --------------------------------------------------------- going on with a run


def test_run_of_other_settings_is_not_gone_on_with(
    command, tiny_flags, tiny_base, tmp_path):
  def again(**macros):
    outcome = command("train", *tiny_flags(
        "prompt_finetune", MODEL_DIR=str(tmp_path), **{
            **STEPS, "TRAIN_STEPS": 3, **macros}))
    return outcome.status, outcome.err

  assert again()[0] == 0
  before = {path: path.read_bytes() for path in tmp_path.rglob("*")
            if path.is_file() and "cache" not in path.parts}
  status, sentence = again(PROMPT_LENGTH=7)
  assert status == 2
  assert re.search(r"\(5, 8\).*\(7, 8\).*prompt length", sentence)
  weights = hugging_face.HuggingFaceWeights(tiny_base)
  params = {name: base.read_variable(tiny_base, name) + 1
            for name in weights.arrays}
  hugging_face.save(
      tmp_path / "other", state_lib.unflatten(params), weights.config,
      "float32", weights.family)
  status, sentence = again(INITIAL_CHECKPOINT_PATH=str(tmp_path / "other"))
  assert status == 2
  assert "started from other base weights" in sentence
  assert before == {path: path.read_bytes() for path in before}
