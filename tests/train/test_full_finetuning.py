"""Every parameter trained: shares of devices, precision, and what is saved.

Oracles: one device, whose losses eight must have; optax on its own tree; and
transformers, which loads what is left.
"""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import prompts
from prompt_tuning.checkpoints import base, hugging_face
from prompt_tuning.errors import UserError
from prompt_tuning.models import (
  causal_lm,
  decoder_only,
  encoder_decoder,
  t5,
)
from prompt_tuning.train import (
  exporting,
  optimizers,
  settings,
  setup,
  sharding,
)
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib

CAUSAL = causal_lm.Config(
    vocab_size=48, embed_dim=16, num_layers=1, num_heads=2, head_dim=8,
    mlp_dim=32, positions="learned", max_positions=24, norm="layer_norm",
    mlp_activations=("gelu",), qkv_bias=True, attention_out_bias=True,
    mlp_bias=True)
T5 = t5.Config(
    vocab_size=48, embed_dim=16, num_heads=8, head_dim=2, mlp_dim=32,
    num_encoder_layers=1, num_decoder_layers=1)
VOCABULARY = types.SimpleNamespace(eos_id=1, vocab_size=48)
OPTIMIZER = optimizers.clipped(
    optimizers.AdamW(1e-2, weight_decay=0.05), max_norm=1.0)


def causal(**changes):
  return decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(dataclasses.replace(CAUSAL, **changes)), VOCABULARY)


def encoder_decoder_model(**changes):
  return encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(dataclasses.replace(T5, **changes)), VOCABULARY,
      VOCABULARY, loss_normalizing_factor="num_tokens")


MODELS = {"causal": causal, "t5": encoder_decoder_model}


def batch_of(name):
  random = np.random.RandomState(0)
  targets = random.randint(2, 48, (8, 4))
  batch = {"decoder_target_tokens": targets,
           "decoder_loss_weights": np.ones((8, 4), np.float32)}
  if name == "t5":
    return batch | {
        "encoder_input_tokens": random.randint(2, 48, (8, 6)),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1]}
  return batch | {
      "decoder_input_tokens": random.randint(2, 48, (8, 10)),
      "decoder_target_positions": np.tile(np.arange(5, 9), (8, 1))}


def saved_base(name, folder):
  """A Hugging Face directory with random weights."""
  model = MODELS[name]()
  random = np.random.default_rng(0)
  params = jax.tree.map(
      lambda s: random.normal(float(len(s.shape) == 1), 0.2, s.shape)
      .astype(np.float32), model.abstract()[0])
  hugging_face.save(folder, params, model.module.config, "float32")
  return params


def mesh_of(devices):
  return jax.sharding.Mesh(
      np.reshape(jax.devices()[:devices], (1, devices, 1)),
      sharding.MESH_AXES)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """Each model's folder."""
  folders = {name: tmp_path_factory.mktemp(name) for name in MODELS}
  for name, folder in folders.items():
    saved_base(name, folder)
  return folders


@functools.cache
def trained(name, folder, devices, steps=3, **changes):
  """Losses of some steps, and the state after them."""
  model, mesh = MODELS[name](**changes), mesh_of(devices)
  weights = setup.prepare(
      model, settings.RestoreCheckpointConfig(str(folder)), [".*"], mesh,
      jax.random.PRNGKey(0))
  assert not weights.frozen and not weights.initialized
  given = jax.tree.leaves(weights.trainable)
  shapes = setup.state_shapes(weights, OPTIMIZER, mesh)
  state = setup.initial_state(weights, OPTIMIZER, shapes)
  # The loaded arrays went into the state; nothing holds them twice.
  assert weights.trainable is None and all(x.is_deleted() for x in given)
  step = step_lib.compiled_update(
      step_lib.make_train_step(model, OPTIMIZER), shapes)
  batch = sharding.put_batch(batch_of(name), mesh)
  losses = []
  for _ in range(steps):
    state, metrics = step(state, {}, batch, jax.random.PRNGKey(0))
    losses.append(float(metrics["loss"]))
  return losses, state


@pytest.mark.parametrize("name", MODELS)
def test_no_device_has_more_than_its_share(name, bases):
  """Of parameters and moments alike; losses are those of one device."""
  one, whole = trained(name, bases[name], 1)
  eight, shared = trained(name, bases[name], 8)
  np.testing.assert_allclose(eight, one, rtol=1e-5)
  assert one[2] < one[0]
  state = {jax.tree_util.keystr(path): leaf for path, leaf in
           jax.tree_util.tree_leaves_with_path(shared)}
  trees = 0
  for path, leaf in state.items():
    if leaf.ndim == 0:  # counts
      continue
    trees += 1
    shares = {shard.device: shard.data.size for shard in
              leaf.addressable_shards}
    assert len(shares) == 8, path
    assert set(shares.values()) == {leaf.size // 8}, path
  assert trees == 3 * len(jax.tree.leaves(whole.trainable))
  ours, theirs = (state_lib.flatten(x.trainable) for x in (shared, whole))
  for path, value in theirs.items():
    # A key's bias moves all scores of a query alike: its gradient is 0 but for
    # rounding, which Adam makes as long as any other.
    if not path.endswith("key/bias"):
      np.testing.assert_allclose(ours[path], value, atol=1e-4, err_msg=path)


def dots(jaxpr):
  """The operands of every product in a program."""
  found = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      found.append([v.aval for v in equation.invars])
    for value in equation.params.values():
      for inner in value if isinstance(value, (tuple, list)) else [value]:
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          found += dots(inner)
  return found


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_computes_on_float32_parameters(name, bases):
  exact, _ = trained(name, bases[name], 1)
  rounded, state = trained(name, bases[name], 1, dtype=jnp.bfloat16)
  assert exact != rounded
  np.testing.assert_allclose(rounded, exact, rtol=0.02)
  kept = {leaf.dtype for leaf in jax.tree.leaves(
      (state.trainable, state.optimizer_state)) if leaf.ndim}
  assert kept == {jnp.dtype("float32")}
  model = MODELS[name](dtype=jnp.bfloat16)
  program = jax.make_jaxpr(step_lib.make_train_step(model, OPTIMIZER))(
      state, {}, batch_of(name), jax.random.PRNGKey(0))
  products = dots(program.jaxpr)
  assert len(products) > 20
  exact = [pair for pair in products if pair[0].dtype == jnp.float32]
  # T5's own logits are in float32, as T5X has them, forward and back.
  assert len(exact) == (3 if name == "t5" else 0)
  assert all(pair[0].dtype == pair[1].dtype for pair in products)
  assert all(any(48 in x.shape for x in pair) for pair in exact[:1])


# ------------------------------------------------------------------- the model


def export(name, folder, base_folder, model=None, given=None, **options):
  """The folder that a run leaves, and the trained parameters."""
  model = model or MODELS[name]()
  weights = setup.prepare(
      model, settings.RestoreCheckpointConfig(str(base_folder)), [".*"],
      mesh_of(8), jax.random.PRNGKey(0))
  params = jax.tree.map(lambda x: x * 1.5, weights.trainable)
  exporting.write_model(
      str(folder), model, params, weights,
      settings.SaveCheckpointConfig(**options))
  return folder / "hugging_face", params


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scan", [False, True])
def test_shards_hold_what_was_trained(name, scan, tmp_path):
  saved_base(name, tmp_path / "base")
  (tmp_path / "base" / "tokenizer.json").write_text("{}")
  (tmp_path / "base" / "pytorch_model.bin").write_text("a pickle")
  made, params = export(
      name, tmp_path, tmp_path / "base", MODELS[name](scan_layers=scan),
      max_shard_bytes=4000)
  files = sorted(p.name for p in made.iterdir())
  shards = [n for n in files if n.startswith("model-")]
  assert len(shards) > 3
  assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
  assert files == ["config.json", *shards, "model.safetensors.index.json",
                   "tokenizer.json"]
  index = json.loads((made / "model.safetensors.index.json").read_text())
  assert set(index["weight_map"].values()) == set(shards)
  total = sum(x.size for x in jax.tree.leaves(params)) * 4
  assert index["metadata"]["total_size"] == total
  header = 4096  # a file's list of its tensors
  assert all((made / n).stat().st_size <= 4000 + header for n in shards)
  loaded = base.load_base(made, jax.eval_shape(lambda: params))
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  (made / shards[1]).unlink()
  with pytest.raises(UserError, match=f"{shards[1]} is missing"):
    base.open_base(made)


def test_one_file_where_it_fits_and_another_dtype(tmp_path):
  saved_base("causal", tmp_path / "base")
  export("causal", tmp_path, tmp_path / "base", max_shard_bytes=4000)
  made, params = export(
      "causal", tmp_path, tmp_path / "base", model_dtype="bfloat16")
  assert sorted(p.name for p in made.iterdir()) == [
      "config.json", "model.safetensors"]  # of the first, nothing is left
  loaded = base.load_base(made, jax.eval_shape(lambda: params), jnp.bfloat16)
  jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(
      lambda x: x.astype(jnp.bfloat16), params))


def test_a_prompt_is_no_part_of_the_model(tmp_path):
  saved_base("causal", tmp_path / "base")
  factory = functools.partial(
      train_prompts.Prompt, prompt=prompts.Prompt(3))
  model = decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(CAUSAL, factory), VOCABULARY)
  made, params = export("causal", tmp_path, tmp_path / "base", model)
  prompt = params["decoder"].pop("prompt")["prompt"]["prompt"]
  assert prompt.shape == (3, 16)
  assert set(base.open_base(made).arrays) == set(state_lib.flatten(params))


@pytest.mark.parametrize("options, words", [
    ({"max_shard_bytes": 0}, "MAX_SHARD_BYTES"),
    ({"model_dtype": "int8"}, "MODEL_DTYPE.*'int8'.*bfloat16")])
def test_bad_options_are_named(options, words):
  with pytest.raises(UserError, match=words):
    settings.SaveCheckpointConfig(**options)


@pytest.mark.parametrize("patterns, changes", [
    ([".*/prompt/.*"], False),
    ([".*/prompt/.*", "decoder/layers_0/.*"], True),
    ([".*"], True)])
def test_what_a_run_changes(patterns, changes, tmp_path):
  saved_base("causal", tmp_path)
  factory = functools.partial(
      train_prompts.Prompt, prompt=prompts.Prompt(3))
  model = decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(CAUSAL, factory), VOCABULARY)
  weights = setup.prepare(
      model, settings.RestoreCheckpointConfig(str(tmp_path)), patterns,
      mesh_of(1), jax.random.PRNGKey(0))
  assert exporting.changes_base(
      weights.trainable, weights.frozen, weights) == changes


@pytest.mark.parity
@pytest.mark.parametrize("name", MODELS)
def test_transformers_gives_the_same_logits(name, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  saved_base(name, tmp_path / "base")
  made, params = export(
      name, tmp_path, tmp_path / "base", max_shard_bytes=4000)
  batch, model = batch_of(name), MODELS[name]()
  if name == "t5":
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(made)
    arguments = {"input_ids": batch["encoder_input_tokens"],
                 "decoder_input_ids": batch["decoder_input_tokens"]}
  else:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made)
    arguments = {"input_ids": batch["decoder_input_tokens"]}
    batch["decoder_target_positions"] = np.tile(np.arange(10), (8, 1))
  with torch.no_grad():
    expected = theirs.eval()(
        **{k: torch.tensor(v) for k, v in arguments.items()}).logits.numpy()
  with jax.default_matmul_precision("highest"):
    found = model.logits(params, batch)
  np.testing.assert_allclose(
      found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
