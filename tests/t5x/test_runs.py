"""`python -m t5x.train`, `t5x.eval` and `t5x.infer` as a user calls them.

Oracles: our own engine from the same prompt on the same batches, and its
scores. T5X's legacy checkpointer and its orbax manager write the same prompts.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("t5x", reason="T5X is not installed: see docs/t5x.md")

from prompt_tuning.checkpoints import base  # noqa: E402
from prompt_tuning.data import features, vocabularies  # noqa: E402
from prompt_tuning.formats import npy  # noqa: E402
from prompt_tuning.models import encoder_decoder, t5  # noqa: E402
from prompt_tuning.prompts import Prompt  # noqa: E402
from prompt_tuning.train import adafactor  # noqa: E402
from prompt_tuning.train import prompts as train_prompts  # noqa: E402
from prompt_tuning.train import state as state_lib  # noqa: E402
from prompt_tuning.train import step as step_lib  # noqa: E402

pytestmark = pytest.mark.slow

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
PROMPT = "encoder/prompt/prompt/prompt"
CONFIGS = "prompt_tuning/configs"
LENGTHS = {"inputs": 64, "targets": 8}


def run(program, run_file, shared_data, *flags):
  """Runs a program of T5X in a process of its own."""
  bindings = {
      "MIXTURE_OR_TASK_NAME": "sst2_sentences",
      "MIXTURE_OR_TASK_MODULE": "sst2_task",
      "TASK_FEATURE_LENGTHS": LENGTHS,
      "VOCABULARY_FILE": str(shared_data / "t5x" / "t5_vocab")}
  done = subprocess.run(
      [sys.executable, "-m", f"t5x.{program}", f"--gin_search_paths={ROOT}",
       f"--gin_file={HERE / 'tiny_t5.gin'}",
       *(f"--gin_file={CONFIGS}/{name}.gin" for name in run_file.split()),
       *(f"--gin.{name}={value!r}" for name, value in bindings.items()),
       *flags],
      env={**os.environ, "SHARED_DATA": str(shared_data),
           "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(
               [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])},
      capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]


def checkpoint(shared_data):
  return str(shared_data / "t5x" / "test_t5_1_1_tiny" / "checkpoint_3")


def train(shared_data, folder, steps, *flags):
  run("train", "runs/t5x_prompt_finetune", shared_data,
      f"--gin.INITIAL_CHECKPOINT_PATH={checkpoint(shared_data)!r}",
      f"--gin.MODEL_DIR={str(folder)!r}", f"--gin.TRAIN_STEPS={3 + steps}",
      "--gin.BATCH_SIZE=8", "--gin.EVAL_PERIOD=10", "--gin.EVAL_STEPS=1",
      "--gin.utils.SaveCheckpointConfig.period=10", "--gin.RANDOM_SEED=0",
      "--gin.train/utils.DatasetConfig.shuffle=False",
      "--gin.USE_CACHED_TASKS=False", "--gin.DROPOUT_RATE=0.0", *flags)


def saved(folder, step):
  return folder / f"numpy_checkpoints/checkpoint_{step}" / PROMPT.replace(
      "/", ".")


@pytest.fixture(scope="module")
def trained(shared_data, tmp_path_factory):
  """20 steps from the tiny checkpoint, under orbax, T5X's default."""
  folder = tmp_path_factory.mktemp("orbax")
  train(shared_data, folder, 20)
  return folder


def batches(shared_data, split, count):
  """The sentences of sst2_task.py as model features, 8 at a time."""
  vocabulary = vocabularies.SentencePieceVocabulary(
      shared_data / "t5x" / "t5_vocab", extra_ids=100)
  lines = (shared_data / "sst2" / f"{split}.tsv").read_text().splitlines()
  rows = [line.split("\t") for line in lines[:count]]
  texts = {"inputs": [f"sst2 sentence: {text}" for text, _ in rows],
           "targets": [("negative", "positive")[int(y)] for _, y in rows]}
  ids = {name: [features.truncate(
      features.sequence_ids(text, vocabulary), LENGTHS[name],
      vocabulary.eos_id) for text in texts[name]] for name in texts}
  whole = features.model_features(
      ids["inputs"], ids["targets"], LENGTHS["inputs"], LENGTHS["targets"])
  return [{name: value[i:i + 8] for name, value in whole.items()}
          for i in range(0, count, 8)]


@pytest.fixture(scope="module")
def engine(shared_data):
  """Our own model, and the frozen weights."""
  config = t5.Config(
      vocab_size=32128, embed_dim=4, num_heads=2, head_dim=2, mlp_dim=8,
      num_encoder_layers=2, num_decoder_layers=2, relpos_num_buckets=4,
      relpos_max_distance=8)
  model = encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(config, functools.partial(
          train_prompts.Prompt, prompt=Prompt(length=20))), None, None)
  shapes, _ = model.abstract()
  _, frozen = state_lib.split(shapes, [".*/prompt/.*"])
  return model, base.load_base(checkpoint(shared_data), frozen)


def with_prompt(path):
  return state_lib.unflatten({PROMPT: jnp.asarray(npy.read(path))})


def test_the_same_prompt_as_our_engine(shared_data, trained, engine):
  model, frozen = engine
  start = with_prompt(saved(trained, 3))
  optimizer = adafactor.Adafactor(
      0.3, multiply_by_parameter_scale=False, weight_decay_rate=1e-5,
      initial_step=3)
  state = step_lib.TrainState(jnp.int32(3), start, optimizer.init(start))
  step = jax.jit(step_lib.make_train_step(model, optimizer))
  cycle = batches(shared_data, "train", 32)
  for i in range(20):
    state, _ = step(state, frozen, cycle[i % 4], jax.random.PRNGKey(0))
    if i in (9, 19):
      ours = state_lib.flatten(state.trainable)[PROMPT]
      theirs = npy.read(saved(trained, 4 + i))
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
  moved = npy.read(saved(trained, 23)) - npy.read(saved(trained, 3))
  assert abs(moved).max() > 1


def test_legacy_checkpoints_export_the_same(shared_data, trained, tmp_path):
  train(shared_data, tmp_path, 20, "--gin.train.use_orbax=False",
        "--gin.train.infer_eval_dataset_cfg=None",
        "--gin.utils.SaveCheckpointConfig.dtype='bfloat16'")
  assert (tmp_path / "checkpoint_23" / "checkpoint").is_file()
  for step in (3, 13, 23):
    assert saved(tmp_path, step).read_bytes() == saved(
        trained, step).read_bytes()


def test_a_run_under_orbax_resumes(shared_data, trained, tmp_path):
  """On a copy; and what it goes on with is what an unbroken run has."""
  folder = tmp_path / "copy"
  subprocess.run(["cp", "-r", trained, folder], check=True)
  train(shared_data, folder, 30)
  for step in (3, 13, 23):
    assert saved(folder, step).read_bytes() == saved(
        trained, step).read_bytes()
  moved = npy.read(saved(folder, 33)) - npy.read(saved(folder, 23))
  assert 0 < abs(moved).max() < 10


def apply(program, shared_data, trained, folder, *flags, files=""):
  output = {"eval": "EVAL_OUTPUT_DIR", "infer": "INFER_OUTPUT_DIR"}[program]
  run(program, f"{files} runs/t5x_prompt_{program}", shared_data,
      f"--gin.CHECKPOINT_PATH={checkpoint(shared_data)!r}",
      f"--gin.PROMPT_FILE={str(saved(trained, 23))!r}",
      f"--gin.{output}={str(folder)!r}",
      "--gin.utils.DatasetConfig.split='validation'",
      "--gin.utils.DatasetConfig.batch_size=8", *flags)


def test_scores_are_those_of_the_exported_prompt(
    shared_data, trained, engine, tmp_path):
  apply("infer", shared_data, trained, tmp_path, "--gin.infer.mode='score'")
  file = tmp_path / "sst2_sentences-score.jsonl-00000-of-00001"
  scores = [json.loads(line)["score"]
            for line in file.read_text().splitlines()]
  model, frozen = engine
  [batch] = batches(shared_data, "dev", 8)
  ours = model.score(state_lib.merge(
      with_prompt(saved(trained, 23)), frozen), batch)
  np.testing.assert_allclose(scores, ours, rtol=1e-5)
  other = model.score(state_lib.merge(
      with_prompt(saved(trained, 3)), frozen), batch)
  assert abs(ours - other).max() > 1e-2


def test_eval_writes_metrics(shared_data, trained, tmp_path):
  apply("eval", shared_data, trained, tmp_path)
  [file] = tmp_path.rglob("sst2_sentences-metrics.jsonl")
  assert "accuracy" in json.loads(file.read_text().splitlines()[-1])


def test_flaxformer_predicts_with_beams(shared_data, trained, tmp_path):
  pytest.importorskip("flaxformer")
  results = []
  for name, files in (("ours", ""), (
      "flaxformer", "architectures/flaxformer_t5_prompt")):
    folder = tmp_path / name
    apply("infer", shared_data, trained, folder,
          files=f"{files} models/decoding/beam_search")
    file = folder / "sst2_sentences-predict.jsonl-00000-of-00001"
    results.append([json.loads(line)["prediction"]
                    for line in file.read_text().splitlines()])
  assert len(results[0]) == 8
  assert results[0] == results[1]
