"""Prompts trained together end as each would alone."""

import dataclasses
import functools
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import errors, prompts
from prompt_tuning.checkpoints import runs
from prompt_tuning.data import batches, features, tasks, vocabularies
from prompt_tuning.formats import card, npy
from prompt_tuning.methods import lora
from prompt_tuning.models import causal_lm, decoder_only, encoder_decoder, t5
from prompt_tuning.train import (
  comparison,
  members,
  settings,
  sharding,
  stacked,
  sweep,
)
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib
from prompt_tuning.train.adafactor import Adafactor

BYTES = vocabularies.ByteVocabulary()
PROMPT = functools.partial(train_prompts.Prompt, prompt=prompts.Prompt(3))


def t5_model(**options):
  module = t5.EncoderDecoder(
      t5.Config(259, 8, 2, 4, 16, 1, 1), prompt_factory=PROMPT)
  return encoder_decoder.EncoderDecoderModel(module, BYTES, BYTES, **options)


def causal_model(prompt_factory=PROMPT, **options):
  module = causal_lm.CausalLM(
      causal_lm.Config(259, 8, 1, 2, 4, 16), prompt_factory=prompt_factory)
  return decoder_only.DecoderOnlyModel(module, BYTES, **options)


def lora_model():
  return causal_model(None, delta=lora.Lora(
      targets=[".*/query"], rank=2, alpha=4.0))


def random_params(model, seed=0):
  draw = np.random.default_rng(seed)
  return jax.tree.map(
      lambda s: draw.normal(1.0 if len(s.shape) == 1 else 0.0, 0.2, s.shape)
      .astype(np.float32), model.abstract()[0])


def batch_of(model, seed):
  """Three examples of random bytes."""
  draw = np.random.default_rng(seed)
  inputs = [draw.integers(3, 259, length).tolist() for length in (7, 5, 2)]
  targets = [draw.integers(3, 259, length).tolist() for length in (1, 3, 2)]
  return model.features.padded(inputs, targets, 7, 3)


# ------------------------------------------------------- a step of all members


@pytest.mark.parametrize("make, pattern, one_batch, at_once", [
    (t5_model, ".*/prompt/.*", True, 3), (t5_model, ".*/prompt/.*", False, 2),
    (causal_model, ".*/prompt/.*", True, 1),
    (causal_model, ".*/prompt/.*", False, 3),
    (lora_model, ".*/lora/.*", False, 3)])
def test_each_member_is_its_own_run(make, pattern, one_batch, at_once):
  """Oracle: `step.make_train_step`, 20 steps with each member's optimizer."""
  model = make()
  slow, fast = (Adafactor(
      rate, multiply_by_parameter_scale=False) for rate in (0.01, 0.03))
  optimizers = [fast, slow, fast]
  starts = [state_lib.split(random_params(model, k), [pattern])[0]
            for k in range(3)]
  _, frozen = state_lib.split(random_params(model), [pattern])
  frozen = jax.device_put(frozen)
  rngs = jnp.stack([jax.random.PRNGKey(k) for k in range(3)])
  together = jax.jit(stacked.make_train_step(
      model, optimizers, one_batch=one_batch, at_once=at_once))
  alone = {optimizer: jax.jit(step_lib.make_train_step(model, optimizer))
           for optimizer in (slow, fast)}
  trees = stacked.stack(starts)
  state = step_lib.TrainState(
      jnp.int32(0), trees, jax.vmap(fast.init)(trees))
  singles = [step_lib.TrainState(jnp.int32(0), tree, fast.init(tree))
             for tree in starts]
  for number in range(20):
    own = [batch_of(model, number if one_batch else (number, k))
           for k in range(3)]
    state, metrics = together(
        state, frozen, own[0] if one_batch else stacked.stack_batches(own),
        rngs, np.ones(3, bool))
    for k, optimizer in enumerate(optimizers):
      singles[k], single = alone[optimizer](
          singles[k], frozen, own[k], rngs[k])
      for name, value in single.items():
        np.testing.assert_allclose(
            metrics[name][k], value, rtol=1e-5, atol=1e-5, err_msg=name)
  for path, leaf in state_lib.flatten(state.trainable).items():
    for k, single in enumerate(singles):
      expected = state_lib.flatten(single.trainable)[path]
      np.testing.assert_allclose(leaf[k], expected, rtol=1e-5, atol=1e-5)
      assert np.abs(expected - state_lib.flatten(starts[k])[path]).max() > 0.02


def test_dropout_and_microbatches_are_each_members_own():
  """Oracle: single steps of a model whose loss is its random numbers."""

  def loss(params, batch, rng):
    noise = jax.random.uniform(rng, batch["rows"].shape)
    total = jnp.sum(params["prompt"] * batch["rows"] * noise)
    return total, {"loss": total, "tokens": jnp.float32(batch["rows"].size)}

  model = types.SimpleNamespace(
      loss=loss, loss_normalizing_factor="num_tokens")
  optimizer = optax.sgd(0.1)
  trainable = {"prompt": jnp.ones(3)}
  batch = {"rows": jnp.arange(18.0).reshape(6, 3)}
  rngs = jnp.stack([jax.random.PRNGKey(k) for k in range(2)])
  trees = stacked.stack([trainable, trainable])
  state, _ = stacked.make_train_step(
      model, [optimizer] * 2, 3, True, one_batch=True)(
          step_lib.TrainState(
              jnp.int32(4), trees, jax.vmap(optimizer.init)(trees)),
          {}, batch, rngs, np.ones(2, bool))
  found = state.trainable["prompt"]
  for k in range(2):
    single, _ = step_lib.make_train_step(model, optimizer, 3, True)(
        step_lib.TrainState(
            jnp.int32(4), trainable, optimizer.init(trainable)),
        {}, batch, rngs[k])
    np.testing.assert_allclose(
        found[k], single.trainable["prompt"], rtol=1e-5)
  assert (found[0] != found[1]).any()


def test_one_at_a_time_needs_the_memory_of_one():
  """Oracle: XLA's own figures."""
  config = t5.Config(259, 64, 2, 32, 256, 1, 1)
  model = dataclasses.replace(t5_model(), module=t5.EncoderDecoder(
      config, prompt_factory=PROMPT))
  optimizer = optax.sgd(0.1)
  trainable, frozen = state_lib.split(random_params(model), [".*/prompt/.*"])
  texts = [[5] * 64] * 16
  batch = model.features.padded(texts, texts, 64, 64)
  trees = stacked.stack([trainable] * 8)
  rngs = jnp.stack([jax.random.PRNGKey(0)] * 8)

  def temporary(step, *arguments):
    return jax.jit(step, compiler_options=step_lib.compiler_options()).lower(
        *arguments).compile().memory_analysis().temp_size_in_bytes

  alone = temporary(
      step_lib.make_train_step(model, optimizer), step_lib.TrainState(
          jnp.int32(0), trainable, optimizer.init(trainable)), frozen, batch,
      rngs[0])
  together = temporary(
      stacked.make_train_step(model, [optimizer] * 8, one_batch=True),
      step_lib.TrainState(
          jnp.int32(0), trees, jax.vmap(optimizer.init)(trees)),
      frozen, batch, rngs, np.ones(8, bool))
  assert together < 1.5 * alone


# ----------------------------------------------------------------- the members


def test_combinations():
  lists = {"seed": [0, 1], "learning_rate": [0.1, 0.3], "task": None}
  assert [list(one.values()) for one in members.combinations(
      "product", lists)] == [[0, 0.1], [0, 0.3], [1, 0.1], [1, 0.3]]
  assert members.combinations("zip", lists) == [
      {"seed": 0, "learning_rate": 0.1}, {"seed": 1, "learning_rate": 0.3}]
  assert members.folder_name({"seed": 0, "task": "a/b:c"}) == (
      "seed=0_task=a-b-c")


@pytest.mark.parametrize("how, lists, message", [
    ("zip", {"seed": [0, 1], "learning_rate": [0.1]}, "seed: 2, learning_ra"),
    ("product", {"seed": []}, "list of seed is empty"),
    ("product", {"seed": [1, 1]}, "are the same .seed=1"),
    ("all", {"seed": [1]}, "'product' or 'zip'")])
def test_lists_that_make_no_members(how, lists, message):
  with pytest.raises(errors.UserError, match=message):
    members.combinations(how, lists)


@pytest.mark.slow
def test_another_initializer_changes_the_prompt_alone():
  """Oracle: the model that was built with it."""
  initializer = nn.initializers.normal(2.0)
  built = encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(
          t5.Config(259, 8, 2, 4, 16, 1, 1),
          prompt_factory=functools.partial(
              train_prompts.Prompt, prompt=prompts.Prompt(3, initializer))),
      BYTES, BYTES)
  plain, expected, found = (
      state_lib.flatten(jax.jit(lambda rng, model=model: model.init(rng)[
          "params"])(jax.random.PRNGKey(1)))
      for model in (t5_model(), built, members.with_initializer(
          t5_model(), initializer)))
  assert found.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_array_equal(found[path], value)
    assert (plain[path] == value).all() == ("/prompt/" not in path)


def test_batches_of_several_lengths_are_padded_to_the_longest():
  model = causal_model()
  short = model.features.padded([[5, 6]], [[7]], 2, 2)
  long = model.features.padded([[8, 9, 10, 11]], [[12]], 4, 2)
  both = stacked.stack_batches([short, long])
  assert all(len(value) == 2 for value in both.values())
  params = random_params(model)
  for k, one in enumerate((short, long)):
    expected, _ = jax.jit(model.loss)(params, one)
    found, _ = jax.jit(model.loss)(
        params, {name: value[k] for name, value in both.items()})
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def examples_of(lengths):
  task = tasks.Task("mine", lambda split: iter(
      {"inputs": "x" * length, "targets": "y"} for length in lengths),
      ("train",))
  return features.tokenize(
      task, "train", BYTES, BYTES, {"inputs": 12, "targets": 3})


def test_streams_go_on_where_they_were():
  def made():
    streams = [
        batches.TrainBatches(
            examples_of(range(3, 10)), 8, seed, {"inputs": 12, "targets": 3})
        for seed in (0, 1)]
    return stacked.Batches(streams, [0, 1, 0])

  mesh = sharding.make_mesh()
  one = made()
  assert not one.is_one
  first = one.next_on(mesh)["encoder_input_tokens"]
  assert first.shape[:2] == (3, 8)
  assert first.sharding.spec[0] is None
  np.testing.assert_array_equal(first[0], first[2])
  assert (np.asarray(first[0]) != np.asarray(first[1])).any()
  other = made()
  other.set_state(json.loads(json.dumps(one.get_state())))
  np.testing.assert_array_equal(
      one.next_on(mesh)["encoder_input_tokens"],
      other.next_on(mesh)["encoder_input_tokens"])


# ------------------------------------------------------------------ the command

RUN = {"TRAIN_STEPS": 6, "EVAL_PERIOD": 3, "SAVE_PERIOD": 2, "LOG_PERIOD": 2}
LISTS = {"SEEDS": [0, 1], "LEARNING_RATES": [0.003, 0.01]}


@pytest.fixture(scope="module")
def swept(command, tiny_flags, tmp_path_factory):
  """A finished sweep of four members, and what it gave."""
  folder = tmp_path_factory.mktemp("sweep")
  outcome = command("sweep", *tiny_flags(
      "prompt_sweep", MODEL_DIR=str(folder), **RUN, **LISTS))
  assert outcome.status == 0, outcome.err
  return folder, outcome


@pytest.mark.parametrize("seed, rate", [(0, 0.01), (1, 0.003)])
def test_a_member_is_the_run_with_its_settings(
    command, tiny_flags, swept, tmp_path, seed, rate):
  folder, outcome = swept
  alone = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(tmp_path), **RUN, RANDOM_SEED=seed,
      LEARNING_RATE=rate))
  assert alone.status == 0, alone.err
  name = f"seed={seed}_learning_rate={rate}"
  np.testing.assert_allclose(
      npy.read(folder / name / "prompt.npy"), npy.read(tmp_path / "prompt.npy"),
      rtol=1e-5, atol=1e-5)
  [record] = [one for one in outcome.result if one["member"] == name]
  assert (record["seed"], record["learning_rate"]) == (seed, rate)
  for metric, value in alone.result.items():
    assert record[metric] == pytest.approx(value, rel=1e-5), metric
  for mine, other in zip(*(
      [json.loads(line) for line in
       (path / "train.jsonl").read_text().splitlines()]
      for path in (folder / name, tmp_path)), strict=True):
    assert mine == pytest.approx(other, rel=1e-4)
  found = card.read_card(folder / name / "prompt.json")
  assert found.settings["seed"] == seed
  assert found.settings["learning_rate"] == rate
  assert found.metric == pytest.approx(alone.result, rel=1e-5)


def test_the_sweep_leaves_a_table_and_a_picture(swept):
  folder, outcome = swept
  assert json.loads((folder / "sweep.json").read_text()) == outcome.result
  table = (folder / "sweep.md").read_text()
  assert table.strip() in outcome.err
  lines = table.splitlines()
  assert len(lines) == 2 + 4
  assert len({len(line) for line in lines}) == 1
  assert {"member", "seed", "learning_rate", "training loss",
          "file/accuracy"} <= {cell.strip() for cell in lines[0].split("|")}
  assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
  assert "learning_rates = %LEARNING_RATES" in (
      folder / "config.gin").read_text()


def test_a_stopped_sweep_goes_on(command, tiny_flags, swept, tmp_path):
  """Oracle: the unbroken sweep, bit for bit; its data, logs and averages."""
  folder, outcome = swept
  for steps in (3, 6):
    again = command("sweep", *tiny_flags(
        "prompt_sweep", MODEL_DIR=str(tmp_path), **RUN | {
            "TRAIN_STEPS": steps}, **LISTS))
    assert again.status == 0, again.err
  assert again.result == outcome.result
  for one in outcome.result:
    for file in ("prompt.npy", "train.jsonl"):
      assert (tmp_path / one["member"] / file).read_bytes() == (
          folder / one["member"] / file).read_bytes()
  assert [runs.damage(path) for path in tmp_path.glob("checkpoint_*")] == [None]
  other = command("sweep", *tiny_flags(
      "prompt_sweep", MODEL_DIR=str(tmp_path), **RUN,
      **LISTS | {"SEEDS": [0, 2]}))
  assert other.status == 2
  assert "has the members seed=0_learning_rate=0.003, " in other.err


@pytest.mark.slow
def test_a_member_that_diverges_leaves_the_others_alone(
    command, tiny_flags, swept, tmp_path):
  folder, _ = swept
  outcome = command("sweep", *tiny_flags(
      "prompt_sweep", MODEL_DIR=str(tmp_path), **RUN,
      LEARNING_RATES=[0.01, 3e38], SEEDS=[0]))
  assert outcome.status == 0, outcome.err
  good, bad = outcome.result
  assert "stopped at" not in good
  assert bad["stopped at"] == 0
  np.testing.assert_allclose(
      npy.read(tmp_path / good["member"] / "prompt.npy"),
      npy.read(folder / good["member"] / "prompt.npy"), rtol=1e-5, atol=1e-5)
  assert outcome.err.count("it stays as it was before them") == 1
  outcome = command("sweep", *tiny_flags(
      "prompt_sweep", MODEL_DIR=str(tmp_path / "all"), **RUN,
      LEARNING_RATES=[3e38]))
  assert outcome.status == 2
  assert "every member was not finite" in outcome.err


@pytest.mark.slow
def test_tasks_and_initializers(
    command, tiny_flags, tiny_task, tmp_path, shared_gin):
  outcome = command("sweep", *tiny_flags(
      "prompt_sweep", MODEL_DIR=str(tmp_path), **RUN), *shared_gin)
  assert outcome.status == 0, outcome.err
  assert [(one["task"], one["initializer"]) for one in outcome.result] == [
      ("file", "wide"), ("other", "vocabulary")]
  first, second = outcome.result
  assert "file/accuracy" in first and "other/accuracy" not in first
  assert "other/accuracy" in second


@pytest.fixture
def shared_gin(tmp_path):
  """Flags that give two tasks and two initialisers, one to one."""
  path = tmp_path / "lists.gin"
  path.write_text("""
from __gin__ import dynamic_registration
import flax.linen as linen
from prompt_tuning import prompts
from prompt_tuning.data import files

TASKS = [@files.FileTask(), @other/files.FileTask()]
other/files.FileTask.name = 'other'
PROMPT_INITIALIZERS = {
    'wide': @wide/linen.initializers.normal(),
    'vocabulary': @prompts.from_sample_of_embeddings()}
wide/linen.initializers.normal.stddev = 2.0
prompts.from_sample_of_embeddings.embeddings = @prompts.t5x_load()
prompts.t5x_load.checkpoint_path = %INITIAL_CHECKPOINT_PATH
prompts.t5x_load.variable_path = 'token_embedder/embedding'
SWEEP_MEMBERS = 'zip'
""")
  return [f"--gin_file={path}"]


def test_a_start_from_each_of_several_files(command, tiny_flags, tmp_path):
  """SPoT's best of top-k. Oracle: the files, at the lowest rate."""
  draw = np.random.default_rng(0)
  files = {name: draw.normal(size=(5, 8)).astype(np.float32)
           for name in ("qnli", "rte")}
  for name, prompt in files.items():
    npy.write(tmp_path / f"{name}.npy", prompt)
  flags = tiny_flags(
      "prompt_sweep_from_files", MODEL_DIR=str(tmp_path / "run"),
      TRAIN_STEPS=1, LEARNING_RATE=0.0,
      PROMPT_FILES=[str(tmp_path / f"{name}.npy") for name in files])
  outcome = command("sweep", *flags)
  assert outcome.status == 0, outcome.err
  assert [one["initializer"] for one in outcome.result] == list(files)
  for name, prompt in files.items():
    np.testing.assert_allclose(
        npy.read(tmp_path / f"run/initializer={name}/prompt.npy"), prompt,
        rtol=1e-4)
  card.write_card(
      tmp_path / "rte.npy", base_model="another", base_fingerprint="0" * 64,
      task="", metric={}, step=0, settings={})
  outcome = command("sweep", *flags)
  assert outcome.status == 2 and "trained on the base model" in outcome.err


def test_a_learning_rate_that_nothing_uses(command, tiny_flags, tmp_path):
  outcome = command("sweep", *tiny_flags(
      "prompt_sweep", MODEL_DIR=str(tmp_path / "run"), **RUN,
      LEARNING_RATES=[0.1, 0.3]),
      "--gin.adafactor.Adafactor.learning_rate=0.3")
  assert outcome.status == 2
  assert "OPTIMIZER does not use LEARNING_RATE" in outcome.err
  assert not (tmp_path / "run").exists()


def test_a_parameter_that_it_has_not(command, tiny_flags, tmp_path):
  outcome = command("sweep", *tiny_flags(
      "prompt_sweep", MODEL_DIR=str(tmp_path / "run"), **RUN),
      "--gin.sweep.train_sweep.log_perod=3")
  assert outcome.status == 2
  assert "no parameter 'log_perod'" in outcome.err


def test_members_of_one_name_are_refused():
  one = types.SimpleNamespace(name="seed=0")
  options = dict.fromkeys((
      "model_dir", "restore_checkpoint_cfg", "save_checkpoint_cfg",
      "trainable", "total_steps"))
  with pytest.raises(errors.UserError, match="are both seed=0"):
    sweep.train_members([one, one], **options)
  with pytest.raises(errors.UserError, match="has no members"):
    sweep.train_members([], **options)


def test_table():
  assert comparison.markdown([
      {"member": "a", "loss": 0.123456789}, {"member": "b", "other": 1}]) == (
          "| member | loss    | other |\n"
          "|--------|---------|-------|\n"
          "| a      | 0.12346 |       |\n"
          "| b      |         | 1     |\n")


def test_settings_refuse_another_dtype():
  with pytest.raises(errors.UserError, match="bfloat16 or int8"):
    settings.RestoreCheckpointConfig("base", "int4")
