"""`python -m t5x.train`, `t5x.eval` and `t5x.infer` as a user calls them.

Oracles: our own engine from the same prompt on the same batches, its scores and
its predictions; for Flaxformer's decoder, which it does not have, see
`AsTokens`. T5X's legacy checkpointer and its orbax manager write the same
prompts.
"""

import dataclasses
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
from prompt_tuning.decoding import beam, greedy  # noqa: E402
from prompt_tuning.formats import npy  # noqa: E402
from prompt_tuning.formats import t5x as t5x_format  # noqa: E402
from prompt_tuning.methods import (  # noqa: E402
  heads,
  ia3,
  instance,
  lora,
  low_rank,
)
from prompt_tuning.models import (  # noqa: E402
  causal_lm,
  decoder_only,
  encoder_decoder,
  t5,
)
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


def run(program, run_file, shared_data, *flags, model="tiny_t5"):
  """Runs a program of T5X in a process of its own."""
  bindings = {
      "MIXTURE_OR_TASK_NAME": "sst2_sentences",
      "MIXTURE_OR_TASK_MODULE": "sst2_task",
      "TASK_FEATURE_LENGTHS": LENGTHS,
      "VOCABULARY_FILE": str(shared_data / "t5x" / "t5_vocab")}
  done = subprocess.run(
      [sys.executable, "-m", f"t5x.{program}", f"--gin_search_paths={ROOT}",
       f"--gin_file={HERE / model}.gin",
       *(f"--gin_file={CONFIGS}/{name}.gin" for name in run_file.split()),
       *(f"--gin.{name}={value!r}" for name, value in bindings.items()),
       *flags],
      env={**os.environ, "SHARED_DATA": str(shared_data),
           # One device: (IA)3's vectors are too short to share among eight.
           "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "",
           "PYTHONPATH": os.pathsep.join([
               str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])},
      capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]


def checkpoint(shared_data):
  return str(shared_data / "t5x" / "test_t5_1_1_tiny" / "checkpoint_3")


def train(shared_data, folder, steps, *flags, base="", files="",
          model="tiny_t5"):
  run("train", f"{files} runs/t5x_prompt_finetune", shared_data,
      f"--gin.INITIAL_CHECKPOINT_PATH={str(base or checkpoint(shared_data))!r}",
      f"--gin.MODEL_DIR={str(folder)!r}", f"--gin.TRAIN_STEPS={3 + steps}",
      "--gin.BATCH_SIZE=8", "--gin.EVAL_PERIOD=10", "--gin.EVAL_STEPS=1",
      "--gin.utils.SaveCheckpointConfig.period=10", "--gin.RANDOM_SEED=0",
      "--gin.train/utils.DatasetConfig.shuffle=False",
      "--gin.USE_CACHED_TASKS=False", "--gin.DROPOUT_RATE=0.0", *flags,
      model=model)


def saved(folder, step, path=PROMPT):
  return folder / f"numpy_checkpoints/checkpoint_{step}" / path.replace(
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
          train_prompts.Prompt, prompt=Prompt(length=20))), None,
      vocabularies.SentencePieceVocabulary(
          shared_data / "t5x" / "t5_vocab", extra_ids=100),
      decode_fn=functools.partial(beam.beam_search, num_beams=4, alpha=0.6))
  shapes, _ = model.abstract()
  _, frozen = state_lib.split(shapes, [".*/prompt/.*"])
  return model, base.load_base(checkpoint(shared_data), frozen)


def with_prompt(path, name=PROMPT):
  return state_lib.unflatten({name: jnp.asarray(npy.read(path))})


def our_run(model, frozen, start, cycle, rate):
  """What our engine has trained after 10 and after 20 steps, by path."""
  optimizer = adafactor.Adafactor(
      rate, multiply_by_parameter_scale=False, weight_decay_rate=1e-5,
      initial_step=3)
  state = step_lib.TrainState(jnp.int32(3), start, optimizer.init(start))
  step = jax.jit(step_lib.make_train_step(model, optimizer))
  found = {}
  for i in range(20):
    state, _ = step(state, frozen, cycle[i % 4], jax.random.PRNGKey(0))
    found[4 + i] = state_lib.flatten(state.trainable)
  return {at: found[at] for at in (13, 23)}


def test_the_same_prompt_as_our_engine(shared_data, trained, engine):
  model, frozen = engine
  ours = our_run(model, frozen, with_prompt(saved(trained, 3)),
                 batches(shared_data, "train", 32), 0.3)
  for at, values in ours.items():
    np.testing.assert_allclose(
        values[PROMPT], npy.read(saved(trained, at)), rtol=0, atol=1e-4)
  moved = npy.read(saved(trained, 23)) - npy.read(saved(trained, 3))
  assert abs(moved).max() > 1


DELTAS = {"lora": lora.Lora(4, 32.0, [".*attention/(query|value)"]),
          "ia3": ia3.Ia3([".*attention/(key|value)"], [".*/mlp/wo"])}


@pytest.mark.parametrize("name", DELTAS)
def test_deltas_are_trained_as_by_our_engine(
    name, shared_data, engine, tmp_path):
  train(shared_data, tmp_path, 20, "--gin.train.use_orbax=False",
        "--gin.train.infer_eval_dataset_cfg=None", "--gin.LEARNING_RATE=0.01",
        files=f"prompts/{name}")
  model, _ = engine
  model = dataclasses.replace(
      model, module=model.module.clone(prompt_factory=None), delta=DELTAS[name])
  shapes, _ = model.abstract()
  trainable, frozen = state_lib.split(shapes, [f".*/{name}/.*"])
  frozen = base.load_base(checkpoint(shared_data), frozen)
  check_same(tmp_path, model, frozen, trainable,
             batches(shared_data, "train", 32))
  after = base.load_base(str(tmp_path / "checkpoint_23"), shapes)
  after = state_lib.flatten(after)
  for path, value in state_lib.flatten(frozen).items():
    assert np.array_equal(after[path], value), path
  assert len(after) == len(state_lib.flatten(shapes))
  use("infer", "trained", shared_data, tmp_path / "checkpoint_23",
      tmp_path / "scores", "--gin.infer.mode='score'", files=f"prompts/{name}")
  [batch] = batches(shared_data, "dev", 8)
  np.testing.assert_allclose(
      results(tmp_path / "scores", "score"),
      model.score(state_lib.unflatten(after), batch), rtol=1e-5)


def check_same(folder, model, frozen, trainable, cycle, last=23):
  """From T5X's start our engine gets all that T5X has trained."""
  # Some are vectors, and `npy.read` is for prompts.
  start = {path: np.load(saved(folder, 3, path))
           for path in state_lib.flatten(trainable)}
  ours = our_run(model, frozen, state_lib.unflatten(start), cycle, 0.01)
  for at in {13, last}:
    for path, value in ours[at].items():
      np.testing.assert_allclose(
          value, np.load(saved(folder, at, path)), rtol=0, atol=1e-4)
  assert all(abs(ours[last][path] - start[path]).max() > 1e-3 for path in start)


HEAD = functools.partial(heads.Head, dropout=0.0)
OWN = {"lopa": low_rank.LowRankPrompt(Prompt(length=10), 4, head=HEAD),
       "idpg": instance.InstancePrompt(10, head=HEAD)}
OWN_FLAGS = ["--gin.HEAD_DROPOUT=0.0",
             "--gin.train.infer_eval_dataset_cfg=None",
             "--gin.LEARNING_RATE=0.01"]
# The last step to compare at. IDPG's prompts start near 0, where T5's norm
# magnifies roundings: our engine itself, from a start that is off by 1e-6, is
# off by 7e-5 after 10 steps and by 0.04 after 20.
LAST = {"lopa": 23, "idpg": 13}


def own_prompts(module, name):
  return module.clone(prompt_factory=functools.partial(
      train_prompts.Prompt, prompt=OWN[name]))


def own_params(folder, frozen, trainable):
  """All parameters of a run, from its arrays of the last step."""
  return state_lib.merge(state_lib.unflatten({
      path: jnp.asarray(np.load(saved(folder, 23, path)))
      for path in state_lib.flatten(trainable)}), frozen)


@pytest.fixture(scope="module", params=OWN)
def own(request, shared_data, engine, tmp_path_factory):
  """A method's name, its run, and our model with frozen and trainable."""
  name, (model, frozen) = request.param, engine
  folder = tmp_path_factory.mktemp(name)
  train(shared_data, folder, 20, *OWN_FLAGS, "--gin.train.use_orbax=False",
        files=f"prompts/{name}")
  model = dataclasses.replace(model, module=own_prompts(model.module, name))
  trainable, _ = state_lib.split(model.abstract()[0], [".*/prompt/.*"])
  return name, folder, model, frozen, trainable


def test_prompts_of_each_example_are_trained_as_by_our_engine(shared_data, own):
  name, folder, model, frozen, trainable = own
  check_same(folder, model, frozen, trainable,
             batches(shared_data, "train", 32), LAST[name])


def test_prompts_of_each_example_score_and_predict(shared_data, own, tmp_path):
  name, folder, model, frozen, trainable = own
  params = own_params(folder, frozen, trainable)
  [batch] = batches(shared_data, "dev", 8)
  options = dict(files=f"prompts/{name} models/decoding/beam_search")
  use("infer", "trained", shared_data, folder / "checkpoint_23", tmp_path / "s",
      "--gin.infer.mode='score'", **options)
  np.testing.assert_allclose(
      results(tmp_path / "s", "score"), model.score(params, batch), rtol=1e-5)
  use("eval", "trained", shared_data, folder / "checkpoint_23", tmp_path / "p",
      **options)
  predictions = evaluated(tmp_path / "p")
  assert predictions == texts(model, params, batch)
  assert len(set(predictions)) > 1


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


def apply(program, shared_data, prompt, folder, *flags, base="", **of):
  use(program, "prompt", shared_data, base or checkpoint(shared_data), folder,
      f"--gin.PROMPT_FILE={str(prompt)!r}", *flags, **of)


def use(program, kind, shared_data, base, folder, *flags, files="", **of):
  """`t5x.eval` or `t5x.infer` of a `kind` of run file on the dev sentences."""
  output = {"eval": "EVAL_OUTPUT_DIR", "infer": "INFER_OUTPUT_DIR"}[program]
  run(program, f"{files} runs/t5x_{kind}_{program}", shared_data,
      f"--gin.CHECKPOINT_PATH={str(base)!r}",
      f"--gin.{output}={str(folder)!r}",
      "--gin.utils.DatasetConfig.split='validation'",
      "--gin.utils.DatasetConfig.batch_size=8", *flags, **of)


def results(folder, mode):
  """What `t5x.infer` wrote of each example."""
  file = folder / f"sst2_sentences-{mode}.jsonl-00000-of-00001"
  key = {"score": "score", "predict": "prediction"}[mode]
  return [json.loads(line)[key] for line in file.read_text().splitlines()]


def evaluated(folder):
  """What `t5x.eval` predicted, in the order of the texts."""
  [file] = [path for path in folder.rglob("sst2_sentences-*.jsonl")
            if "metrics" not in path.name]
  return [json.loads(line)["prediction"]
          for line in file.read_text().splitlines()]


def texts(model, params, batch):
  """What our engine predicts."""
  return [model.output_vocabulary.decode(ids)
          for ids in np.asarray(model.predict(params, batch))]


def test_scores_are_those_of_the_exported_prompt(
    shared_data, trained, engine, tmp_path):
  apply("infer", shared_data, saved(trained, 23), tmp_path,
        "--gin.infer.mode='score'")
  scores = results(tmp_path, "score")
  model, frozen = engine
  [batch] = batches(shared_data, "dev", 8)
  ours = model.score(state_lib.merge(
      with_prompt(saved(trained, 23)), frozen), batch)
  np.testing.assert_allclose(scores, ours, rtol=1e-5)
  other = model.score(state_lib.merge(
      with_prompt(saved(trained, 3)), frozen), batch)
  assert abs(ours - other).max() > 1e-2


def test_eval_writes_metrics(shared_data, trained, tmp_path):
  apply("eval", shared_data, saved(trained, 23), tmp_path)
  [file] = tmp_path.rglob("sst2_sentences-metrics.jsonl")
  assert "accuracy" in json.loads(file.read_text().splitlines()[-1])


def test_flaxformer_predicts_with_beams(shared_data, trained, tmp_path):
  pytest.importorskip("flaxformer")
  found = []
  for name, files in (("ours", ""), (
      "flaxformer", "architectures/flaxformer_t5_prompt")):
    folder = tmp_path / name
    apply("infer", shared_data, saved(trained, 23), folder,
          files=f"{files} models/decoding/beam_search")
    found.append(results(folder, "predict"))
  assert len(found[0]) == 8
  assert found[0] == found[1]


# ------------------------------------------------- a tiny decoder-only model

LM_PROMPT = "decoder/prompt/prompt/prompt"


@pytest.fixture(scope="module")
def lm(shared_data, tmp_path_factory):
  """Our own model, its frozen weights at random, and them as T5X's base."""
  config = causal_lm.Config(
      vocab_size=32128, embed_dim=8, num_layers=2, num_heads=2, head_dim=4,
      mlp_dim=16, max_positions=128)
  vocabulary = vocabularies.SentencePieceVocabulary(
      shared_data / "t5x" / "t5_vocab", extra_ids=100)
  model = decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(config, functools.partial(
          train_prompts.Prompt, prompt=Prompt(length=5))), vocabulary,
      decode_fn=greedy.greedy)
  shapes, _ = model.abstract()
  _, frozen = state_lib.split(shapes, [".*/prompt/.*"])
  draw = np.random.default_rng(0).standard_normal
  frozen = jax.tree.map(lambda s: 0.5 * draw(s.shape).astype("f"), frozen)
  folder = tmp_path_factory.mktemp("lm") / "checkpoint_3"
  t5x_format.write_all(folder, state_lib.flatten(frozen).items(), 3)
  return model, frozen, folder


@pytest.fixture(scope="module")
def lm_trained(shared_data, lm, tmp_path_factory):
  """20 steps under orbax; T5X's base lacks the prompt alone."""
  folder = tmp_path_factory.mktemp("lm_orbax")
  train(shared_data, folder, 20, "--gin.LEARNING_RATE=0.3",
        "--gin.train.infer_eval_dataset_cfg=None", base=lm[2], model="tiny_lm")
  return folder


def lm_batches(shared_data, split, count):
  """The same sentences; T5X puts a 0 in front."""
  rows = []
  for batch in batches(shared_data, split, count):
    inputs = [[0, *(int(i) for i in row[row > 0])]
              for row in batch["encoder_input_tokens"]]
    targets = [[int(i) for i in row[row > 0]]
               for row in batch["decoder_target_tokens"]]
    rows.append(features.DecoderOnly().padded(
        inputs, targets, LENGTHS["inputs"] + 1, LENGTHS["targets"]))
  return rows


def test_a_decoder_only_model_has_the_same_prompt(shared_data, lm, lm_trained):
  model, frozen, _ = lm
  ours = our_run(
      model, frozen, with_prompt(saved(lm_trained, 3, LM_PROMPT), LM_PROMPT),
      lm_batches(shared_data, "train", 32), 0.3)
  for at, values in ours.items():
    np.testing.assert_allclose(
        values[LM_PROMPT], npy.read(saved(lm_trained, at, LM_PROMPT)), rtol=0,
        atol=1e-4)
  moved = (npy.read(saved(lm_trained, 23, LM_PROMPT))
           - npy.read(saved(lm_trained, 3, LM_PROMPT)))
  assert abs(moved).max() > 0.1


def test_a_decoder_only_model_with_prompts_of_each_example(
    shared_data, lm, tmp_path):
  """Under orbax, where the models of T5 above have T5X's own checkpoints."""
  train(shared_data, tmp_path, 20, *OWN_FLAGS, files="prompts/lopa",
        base=lm[2], model="tiny_lm")
  model, frozen, _ = lm
  model = dataclasses.replace(model, module=own_prompts(model.module, "lopa"))
  trainable, _ = state_lib.split(model.abstract()[0], [".*/prompt/.*"])
  check_same(tmp_path, model, frozen, trainable,
             lm_batches(shared_data, "train", 32))
  [batch] = lm_batches(shared_data, "dev", 8)
  check_applied(
      model, own_params(tmp_path, frozen, trainable), batch, tmp_path,
      functools.partial(
          use, "infer", "trained", shared_data, tmp_path / "checkpoint_23",
          model="tiny_lm"), "prompts/lopa")


def check_applied(model, params, batch, folder, infer, files=""):
  """T5X's scores are our engine's, and its predictions begin as ours."""
  infer(folder / "score", "--gin.infer.mode='score'", files=files)
  np.testing.assert_allclose(
      results(folder / "score", "score"), model.score(params, batch), rtol=1e-5)
  infer(folder / "predict", files=f"{files} models/decoding/greedy")
  # T5X decodes on, to the end of its row.
  for theirs, text in zip(
      results(folder / "predict", "predict"), texts(model, params, batch),
      strict=True):
    assert text and theirs.startswith(text)


def test_legacy_checkpoints_of_a_decoder_only_model(
    shared_data, lm, lm_trained, tmp_path):
  train(shared_data, tmp_path, 20, "--gin.LEARNING_RATE=0.3",
        "--gin.train.use_orbax=False",
        "--gin.train.infer_eval_dataset_cfg=None", base=lm[2], model="tiny_lm")
  for step in (3, 13, 23):
    assert saved(tmp_path, step, LM_PROMPT).read_bytes() == saved(
        lm_trained, step, LM_PROMPT).read_bytes()


def test_a_decoder_only_model_scores_and_predicts(
    shared_data, lm, lm_trained, tmp_path):
  model, frozen, folder = lm
  prompt = saved(lm_trained, 23, LM_PROMPT)
  [batch] = lm_batches(shared_data, "dev", 8)
  check_applied(
      model, state_lib.merge(with_prompt(prompt, LM_PROMPT), frozen), batch,
      tmp_path, functools.partial(
          apply, "infer", shared_data, prompt, base=folder, model="tiny_lm"))


def test_a_decoder_only_model_is_evaluated(
    shared_data, lm, lm_trained, tmp_path):
  apply("eval", shared_data, saved(lm_trained, 23, LM_PROMPT), tmp_path,
        base=lm[2], model="tiny_lm")
  [file] = tmp_path.rglob("sst2_sentences-metrics.jsonl")
  assert "accuracy" in json.loads(file.read_text().splitlines()[-1])


# ----------------------------- Flaxformer's decoder as a model, with a prompt

FLAXFORMER = "architectures/flaxformer_decoder_only_prompt"
LENGTH = 20
# No text has the last 28 rows of T5's table: here they are what a text begins
# with (of which T5X's 0 would count as padding behind others) and the prompt.
BOS_ROW, FIRST_ROW = 32100, 32101


class AsTokens:
  """A model of T5X that sees the prompt as embeddings of tokens.

  Oracle of the model with a prompt: Flaxformer's plain decoder and T5X's loss,
  scores and decoding, with our engine's steps.
  """

  loss_normalizing_factor = None  # the sum, as in T5X

  def __init__(self, model):
    self.model = model

  def params(self, params):
    decoder = dict(params["decoder"])
    prompt = decoder.pop("prompt")["prompt"]["prompt"]
    table = decoder["token_embedder"]["embedding"]
    table = table.at[BOS_ROW].set(table[0])
    table = table.at[FIRST_ROW:FIRST_ROW + LENGTH].set(prompt)
    return {"decoder": {**decoder, "token_embedder": {"embedding": table}}}

  def loss(self, params, batch, rng=None):
    del rng
    loss, _ = self.model.loss_fn(self.params(params), batch, None)
    return loss, {"loss": loss}


def token_batches(shared_data, split, count):
  """The same sentences as T5X's features, with the prompt's tokens."""
  front = [*range(FIRST_ROW, FIRST_ROW + LENGTH)]
  size = LENGTH + sum(LENGTHS.values())
  found = []
  for batch in batches(shared_data, split, count):
    rows = []
    for inputs, targets in zip(
        batch["encoder_input_tokens"], batch["decoder_target_tokens"]):
      inputs, targets = [*inputs[inputs > 0]], [*targets[targets > 0]]
      text = inputs + targets
      rows.append({
          "decoder_input_tokens": [*front, BOS_ROW, *text[:-1]],
          "decoder_target_tokens": [1] * LENGTH + text,
          "decoder_causal_attention": [1] * (LENGTH + 1 + len(inputs)),
          "decoder_loss_weights": (
              [0] * (LENGTH + len(inputs)) + [1] * len(targets))})
    found.append({name: np.array([
        row[name] + [0] * (size - len(row[name])) for row in rows], np.int32)
        for name in rows[0]})
  return found


@pytest.fixture(scope="module")
def flaxformer_lm(shared_data, tmp_path_factory):
  """The oracle, frozen weights at random, and them as T5X's base."""
  pytest.importorskip("flaxformer")
  from prompt_tuning.t5x import flaxformer, models

  config = t5.Config(
      vocab_size=32128, embed_dim=4, num_heads=2, head_dim=2, mlp_dim=8,
      num_encoder_layers=2, num_decoder_layers=2, relpos_num_buckets=4,
      relpos_max_distance=8)
  plain = flaxformer.decoder_only(config)
  model = models.from_engine(decoder_only.DecoderOnlyModel(
      plain, vocabularies.SentencePieceVocabulary(
          shared_data / "t5x" / "t5_vocab", extra_ids=100),
      z_loss=1e-4, loss_normalizing_factor=None, decode_fn=greedy.greedy))
  tokens = jnp.ones((1, 2), jnp.int32)
  shapes = jax.eval_shape(functools.partial(
      plain.init, enable_dropout=False), jax.random.PRNGKey(0), tokens,
      tokens)["params"]
  draw = np.random.default_rng(0).standard_normal
  frozen = jax.tree.map(lambda s: 0.5 * draw(s.shape).astype("f"), shapes)
  folder = tmp_path_factory.mktemp("flaxformer_lm") / "checkpoint_3"
  t5x_format.write_all(folder, state_lib.flatten(frozen).items(), 3)
  return AsTokens(model), jax.tree.map(jnp.asarray, frozen), folder


@pytest.fixture(scope="module")
def flaxformer_trained(shared_data, flaxformer_lm, tmp_path_factory):
  """20 steps under orbax, with predictions on the way."""
  folder = tmp_path_factory.mktemp("flaxformer_orbax")
  train(shared_data, folder, 20, base=flaxformer_lm[2], files=FLAXFORMER)
  return folder


def test_flaxformers_decoder_trains_the_prompt_alone(
    shared_data, flaxformer_lm, flaxformer_trained):
  oracle, frozen, _ = flaxformer_lm
  start = saved(flaxformer_trained, 3, LM_PROMPT)
  expected = our_run(oracle, frozen, with_prompt(start, LM_PROMPT),
                     token_batches(shared_data, "train", 32), 0.3)
  for at, values in expected.items():
    np.testing.assert_allclose(
        values[LM_PROMPT], npy.read(saved(flaxformer_trained, at, LM_PROMPT)),
        rtol=0, atol=1e-4)
  assert abs(values[LM_PROMPT] - npy.read(start)).max() > 1
  assert [path.name for path in saved(
      flaxformer_trained, 23, LM_PROMPT).parent.iterdir()] == [
          LM_PROMPT.replace("/", ".")]
  after = base.open_base(str(flaxformer_trained / "checkpoint_23")).arrays
  assert set(after) == {LM_PROMPT, *state_lib.flatten(frozen)}
  kept = state_lib.flatten(base.load_base(
      str(flaxformer_trained / "checkpoint_23"), frozen))
  for path, value in state_lib.flatten(frozen).items():
    assert np.array_equal(kept[path], value), path


def test_flaxformers_decoder_scores_and_predicts(
    shared_data, flaxformer_lm, flaxformer_trained, tmp_path):
  oracle, frozen, folder = flaxformer_lm
  prompt = saved(flaxformer_trained, 23, LM_PROMPT)
  params = oracle.params(state_lib.merge(
      with_prompt(prompt, LM_PROMPT), frozen))
  [batch] = token_batches(shared_data, "dev", 8)
  apply("infer", shared_data, prompt, tmp_path / "s",
        "--gin.infer.mode='score'", base=folder, files=FLAXFORMER)
  np.testing.assert_allclose(
      results(tmp_path / "s", "score"),
      oracle.model.score_batch(params, batch), rtol=1e-5)
  apply("eval", shared_data, prompt, tmp_path / "p", base=folder,
        files=f"{FLAXFORMER} models/decoding/greedy")
  vocabulary = oracle.model.output_vocabulary
  expected = [
      vocabulary.decode([int(i) for i in ids])
      for ids in oracle.model.predict_batch(params, batch)]
  assert evaluated(tmp_path / "p") == expected
  assert len(set(expected)) > 1
