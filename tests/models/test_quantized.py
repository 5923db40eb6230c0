"""Frozen weights in int8: the numbers, the memory, the loss, a prompt."""

import dataclasses
import functools
import tracemalloc
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import checkpoints, prompts
from prompt_tuning.checkpoints import base, hugging_face
from prompt_tuning.models import (
  causal_lm,
  decoder_only,
  encoder_decoder,
  quantized,
  t5,
)
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import settings, setup, sharding
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib

CONFIG = t5.Config(
    vocab_size=512, embed_dim=64, num_heads=4, head_dim=16, mlp_dim=128,
    num_encoder_layers=1, num_decoder_layers=1)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def blocks_of(array, rows):
  for start in range(0, len(array), rows):
    part = array[start:start + rows]
    yield ((slice(start, start + len(part)),
            *(slice(0, n) for n in array.shape[1:])), part)


def quantize(array, axis):
  shape = list(array.shape)
  shape[axis] = 1
  scale = quantized.scales(blocks_of(array, 3), tuple(shape), axis)
  values = np.empty(array.shape, np.int8)
  for index, block in quantized.rounded(blocks_of(array, 3), scale, axis):
    values[index] = block
  return quantized.Int8(jnp.asarray(values), jnp.asarray(scale))


# ------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("shape, axis", [
    ((10, 7), -2), ((10, 7), -1), ((2, 10, 7), -2)])
def test_errors_are_half_a_unit_of_their_channel(shape, axis):
  """A closed form: rounding errs by at most scale / 2."""
  array = normal(*shape) * np.logspace(-3, 3, shape[-1], dtype=np.float32)
  made = quantize(array, axis)
  scale = np.asarray(made.scale)
  np.testing.assert_allclose(
      scale, np.abs(array).max(axis, keepdims=True) / 127, rtol=1e-6)
  error = np.abs(np.asarray(made.astype(jnp.float32)) - array)
  assert (error <= scale * 0.5001).all()
  assert np.abs(np.asarray(made.values)).max() == 127


def test_zeros_stay_and_what_is_broken_shows():
  array = normal(6, 3)
  array[:, 0], array[2, 1] = 0.0, np.nan
  found = np.asarray(quantize(array, -2).astype(jnp.float32))
  assert (found[:, 0] == 0).all()
  assert np.isnan(found[:, 1]).all()
  assert np.isfinite(found[:, 2]).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_are_those_of_the_array_it_stands_for(dtype):
  """Oracle: NumPy on the dequantised array, in float32."""
  tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
  x = jnp.asarray(normal(2, 5, 8, seed=1), dtype)
  kernel, table = quantize(normal(8, 6), -2), quantize(normal(9, 8), -1)
  exact_kernel, exact_table = (
      np.asarray(m.astype(jnp.float32)) for m in (kernel, table))
  exact_x = np.asarray(x.astype(jnp.float32))
  product = quantized.matmul(x, kernel)
  assert product.dtype == dtype
  np.testing.assert_allclose(
      product.astype(jnp.float32), exact_x @ exact_kernel, atol=tolerance,
      rtol=tolerance)
  logits = quantized.attend(x, table)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(
      logits, exact_x @ exact_table.T, atol=tolerance, rtol=tolerance)
  np.testing.assert_allclose(
      quantized.take(table, jnp.array([[3, 0]])), exact_table[[[3, 0]]],
      rtol=1e-6)


def test_gradients_pass_to_the_activations():
  """Oracle: the gradient of the product with the dequantised array."""
  kernel = quantize(normal(8, 6), -2)
  x, weights = jnp.asarray(normal(4, 8, seed=1)), jnp.asarray(normal(4, 6))

  def loss(x, kernel):
    return jnp.sum(quantized.matmul(x, kernel) ** 2 * weights)

  np.testing.assert_allclose(
      jax.grad(loss)(x, kernel), jax.grad(loss)(x, kernel.astype(jnp.float32)),
      rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- a whole model


def model_of(**changes):
  vocabulary = types.SimpleNamespace(eos_id=1, vocab_size=CONFIG.vocab_size)
  module = t5.EncoderDecoder(
      dataclasses.replace(CONFIG, **changes), functools.partial(
          train_prompts.Prompt, prompt=prompts.Prompt(4)))
  return encoder_decoder.EncoderDecoderModel(module, vocabulary, vocabulary)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model in a file, with logits of about 1."""
  plain = encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(CONFIG), None, None)
  draw = np.random.default_rng(0)

  def array(path, leaf):
    if path[-1].key == "scale":
      return np.ones(leaf.shape, np.float32)
    value = draw.normal(size=leaf.shape)
    if path[-1].key == "kernel":
      value /= np.sqrt(leaf.shape[0])
    return value.astype(np.float32)

  folder = tmp_path_factory.mktemp("base")
  hugging_face.save(
      folder, jax.tree_util.tree_map_with_path(array, plain.abstract()[0]),
      CONFIG, "float32")
  return folder


def load(folder, dtype, model=None):
  return setup.prepare(
      model or model_of(), settings.RestoreCheckpointConfig(str(folder), dtype),
      [".*/prompt/.*"], sharding.make_mesh(), jax.random.PRNGKey(0))


@pytest.fixture(scope="module")
def weights(folder):
  return {dtype: load(folder, dtype)
          for dtype in ("float32", "bfloat16", "int8")}


@pytest.fixture(scope="module")
def batch():
  draw = np.random.default_rng(1)
  targets = draw.integers(2, CONFIG.vocab_size, (8, 6))
  return {
      "encoder_input_tokens": draw.integers(2, CONFIG.vocab_size, (8, 12)),
      "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      "decoder_target_tokens": targets,
      "decoder_loss_weights": np.ones_like(targets)}


def nbytes(tree):
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_frozen_weights_take_a_quarter_of_float32(weights):
  whole, small = nbytes(weights["float32"].frozen), nbytes(
      weights["int8"].frozen)
  assert 0.25 < small / whole < 0.285  # the scales, norms, position biases
  flat = state_lib.flatten(weights["int8"].frozen)
  assert flat.keys() == state_lib.flatten(weights["float32"].frozen).keys()
  for path, value in flat.items():
    is_int8 = isinstance(value, quantized.Int8)
    assert is_int8 == (path.rsplit("/", 1)[1] in ("kernel", "embedding")), path
  assert setup.size(weights["int8"].frozen) == setup.size(
      weights["float32"].frozen)


def test_loading_never_holds_more_than_the_int8_weights_and_some_blocks(
    tmp_path):
  """Oracle: NumPy's own count of its bytes."""
  shape = (4096, 2048)  # 32 MiB in float32, 8 in int8

  class Weights(checkpoints.BaseWeights):
    path = "memory"
    arrays = {"a/kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def blocks(self, path):
      for start in range(0, shape[0], 256):
        yield ((slice(start, start + 256), slice(0, shape[1])),
               normal(256, shape[1], seed=start))

  leaf = quantized.abstract(jax.ShapeDtypeStruct(shape, jnp.float32), -2)
  tracemalloc.start()
  try:
    loaded = base._load_int8(Weights(), ["a/kernel"], leaf, "a/kernel")
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert loaded.values.nbytes == 8 << 20
  assert peak < (8 + 10) << 20


def test_the_loss_changes_by_less_than_a_hundredth(weights, batch):
  step = jax.jit(step_lib.make_eval_step(model_of()))
  losses = {
      dtype: float(step(w.trainable, w.frozen, batch)["loss"])
      for dtype, w in weights.items()}
  assert losses["int8"] != losses["float32"]
  assert losses["int8"] == pytest.approx(losses["float32"], rel=1e-2)


def test_scanned_layers_give_the_same_loss(folder, weights, batch):
  scanned = model_of(scan_layers=True, remat="full")
  found = load(folder, "int8", scanned)
  losses = [
      float(jax.jit(step_lib.make_eval_step(model))(
          w.trainable, w.frozen, batch)["loss"])
      for model, w in ((model_of(), weights["int8"]), (scanned, found))]
  assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_sharded_weights_give_the_same_loss(folder, weights, batch):
  """Two devices split every kernel and its scales, two the rows of it."""
  found = setup.prepare(
      model_of(), settings.RestoreCheckpointConfig(str(folder), "int8"),
      [".*/prompt/.*"], sharding.make_mesh(model=2, fsdp=2),
      jax.random.PRNGKey(0))
  kernel = found.frozen["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"]
  assert kernel.values.addressable_shards[0].data.shape == (32, 64)
  assert kernel.scale.addressable_shards[0].data.shape == (1, 64)
  step = jax.jit(step_lib.make_eval_step(model_of()))
  losses = [float(step(w.trainable, w.frozen, batch)["loss"])
            for w in (weights["int8"], found)]
  assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_a_prompt_trained_on_int8_works_on_bfloat16(weights, batch):
  model = model_of()
  optimizer = optax.adam(0.1)
  small = weights["int8"]
  trainable = jax.tree.map(jnp.copy, small.trainable)
  state = step_lib.TrainState(
      jnp.int32(0), trainable, optimizer.init(trainable))
  train = jax.jit(step_lib.make_train_step(model, optimizer))
  for _ in range(60):
    state, _ = train(state, small.frozen, batch, None)
  step = jax.jit(step_lib.make_eval_step(model))
  started, *trained = (
      float(step(prompt, w.frozen, batch)["loss"]) for prompt, w in (
          (small.trainable, small), (state.trainable, small),
          (state.trainable, weights["bfloat16"])))
  assert trained[0] < 0.9 * started  # it learned something to lose
  assert trained[1] == pytest.approx(trained[0], rel=2e-2)


@pytest.mark.slow
def test_decoder_only_models_have_it_too(batch):
  """The loss, a prompt's gradient, decoding; tied logits, scanned layers."""
  module = causal_lm.CausalLM(
      causal_lm.Config(
          CONFIG.vocab_size, 64, 2, 4, 16, 128, num_kv_heads=2,
          scan_layers=True),
      prompt_factory=functools.partial(
          train_prompts.Prompt, prompt=prompts.Prompt(4)))
  model = decoder_only.DecoderOnlyModel(
      module, types.SimpleNamespace(eos_id=1, vocab_size=CONFIG.vocab_size))
  params = state_lib.flatten(jax.tree.map(
      np.asarray, jax.jit(model.init)(jax.random.PRNGKey(0))["params"]))
  small = {
      path: value if quantized.axis_of(path) is None or "prompt" in path
      else quantize(value, quantized.axis_of(path))
      for path, value in params.items()}
  rows = model.features.padded(
      batch["encoder_input_tokens"].tolist(),
      batch["decoder_target_tokens"].tolist(), 12, 6)

  @jax.jit
  def loss_and_gradient(params):
    trainable, frozen = state_lib.split(params, [".*/prompt/.*"])
    return jax.value_and_grad(lambda trainable: model.loss(
        state_lib.merge(trainable, frozen), rows)[0])(trainable)

  (exact, gradient), (found, rounded) = (
      loss_and_gradient(state_lib.unflatten(tree)) for tree in (params, small))
  assert float(found) == pytest.approx(float(exact), rel=1e-2)
  [gradient], [rounded] = map(jax.tree.leaves, (gradient, rounded))
  assert jnp.linalg.norm(rounded - gradient) < 0.1 * jnp.linalg.norm(gradient)
  tokens = jax.jit(model.predict)(state_lib.unflatten(small), rows)
  assert tokens.shape == (8, 6)


def test_a_step_does_not_keep_dequantised_kernels(weights, batch):
  """A step of int8 needs no memory for the model in float32 besides."""
  model, optimizer = model_of(), optax.sgd(0.1)
  peaks = {}
  for dtype in ("float32", "int8"):
    w = weights[dtype]
    state = step_lib.TrainState(
        jnp.int32(0), w.trainable, optimizer.init(w.trainable))
    compiled = jax.jit(
        step_lib.make_train_step(model, optimizer),
        compiler_options=step_lib.compiler_options()).lower(
            state, w.frozen, batch, None).compile()
    memory = compiled.memory_analysis()
    peaks[dtype] = memory.temp_size_in_bytes
  kernels = nbytes(weights["float32"].frozen)
  assert peaks["int8"] - peaks["float32"] < kernels / 4


# ---------------------------------------------------------------- the commands


def test_the_commands_take_it_from_gin(command, tiny_flags, tmp_path):
  steps = {"TRAIN_STEPS": 4, "EVAL_PERIOD": 4, "SAVE_PERIOD": 4}
  trained = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(tmp_path / "run"),
      WEIGHT_DTYPE="int8", **steps))
  assert trained.status == 0, trained.err
  prompt = str(tmp_path / "run" / "prompt.npy")
  evaluated = command("eval", *tiny_flags(
      "prompt_eval", PROMPT_FILE=prompt, WEIGHT_DTYPE="int8",
      EVAL_OUTPUT_DIR=str(tmp_path / "eval")))
  assert evaluated.status == 0, evaluated.err
  assert evaluated.result.items() <= trained.result.items()
  inferred = command("infer", *tiny_flags(
      "prompt_infer", PROMPT_FILE=prompt, WEIGHT_DTYPE="int8",
      INFER_OUTPUT_DIR=str(tmp_path / "infer")))
  assert inferred.status == 0, inferred.err
