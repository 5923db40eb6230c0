"""The update: the original's steps, what changes, and what it costs."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import prompts
from prompt_tuning.errors import UserError
from prompt_tuning.models import encoder_decoder, t5
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib
from prompt_tuning.train.adafactor import Adafactor

PROMPT = "encoder/prompt/prompt/prompt"
TINY = t5.Config(
    vocab_size=20, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
    num_encoder_layers=1, num_decoder_layers=1)
RNG = jax.random.key(0)


def model_with_prompt(config, length, **options):
  vocabulary = types.SimpleNamespace(eos_id=1)
  module = t5.EncoderDecoder(config, functools.partial(
      train_prompts.Prompt, prompt=prompts.Prompt(length)))
  return encoder_decoder.EncoderDecoderModel(
      module, vocabulary, vocabulary, **options)


def random_params(model):
  """Parameters that give logits of about 1, by shapes alone."""
  random = np.random.RandomState(0)

  def draw(path, leaf):
    array = random.randn(*leaf.shape)
    if path[-1].key == "scale":
      array = np.ones(leaf.shape)
    elif path[-1].key == "kernel":
      array /= np.sqrt(leaf.shape[0])
    return array.astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, model.abstract()[0])


def tiny_batch(rows=4):
  """Rows with ever less real targets; EOS is 1."""
  random = np.random.RandomState(1)
  targets = random.randint(2, 20, (rows, 4))
  for row in range(rows):
    end = max(3 - row, 0)
    targets[row, end], targets[row, end + 1:] = 1, 0
  return {
      "encoder_input_tokens": random.randint(1, 20, (rows, 5)),
      "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      "decoder_target_tokens": targets,
      "decoder_loss_weights": (targets > 0).astype(np.float32)}


def start(model, optimizer, patterns=(".*/prompt/.*",), step=0):
  """The first state and the frozen tree."""
  trainable, frozen = state_lib.split(random_params(model), patterns)
  return step_lib.TrainState(
      jnp.int32(step), trainable, optimizer.init(trainable)), frozen


def bits(tree):
  return {path: np.asarray(leaf).tobytes()
          for path, leaf in state_lib.flatten(tree).items()}


# ------------------------------------------------------- the original's steps


@pytest.fixture(scope="module")
def original(shared_data):
  with np.load(shared_data / "original_outputs" / "prompt.npz",
               allow_pickle=False) as file:
    return dict(file)


@pytest.fixture(scope="module")
def original_step():
  """One compiled step of the original's tiny model, for both runs."""
  config = t5.Config(
      vocab_size=128, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
      num_encoder_layers=2, num_decoder_layers=2)
  model = model_with_prompt(config, 5, z_loss=1e-4)
  with jax.default_matmul_precision("highest"):
    yield jax.jit(step_lib.make_train_step(model, original_optimizer(0)))


def original_optimizer(initial_step):
  return Adafactor(
      0.3, decay_rate=0.8, multiply_by_parameter_scale=False,
      weight_decay_rate=1e-5, initial_step=initial_step)


# A rate of 0.3 amplifies roundings until step 20: of 16 prompts to start from
# that differ in last bits, one ends 0.09 (from step 0) or 0.0013 away and gives
# another loss by 5e-4 or 2e-5. Up to step 5 all stay within 3e-5. Step 20 has
# three to four times that as tolerances; one step is 0.3.
@pytest.mark.parametrize("first, prompt_at_20, loss_at_20", [
    (0, 0.3, 2e-3), (1_100_000, 5e-3, 1e-4)])
def test_updates_are_the_originals(
    original, original_step, first, prompt_at_20, loss_at_20):
  params, batch = ({
      name.removeprefix(prefix): array for name, array in original.items()
      if name.startswith(prefix)} for prefix in ("param/", "in/"))
  trainable, frozen = state_lib.split(
      state_lib.unflatten(params), [".*/prompt/.*"])
  state = step_lib.TrainState(
      jnp.int32(first), trainable, original_optimizer(first).init(trainable))
  tolerances = {
      1: (1e-5, 1e-5), 2: (1e-5, 1e-5), 5: (1e-4, 1e-5),
      20: (prompt_at_20, loss_at_20)}
  for count in range(1, 21):
    state, metrics = original_step(state, frozen, batch, RNG)
    if count in tolerances:
      expected = f"adafactor/start{first}/step{count}/"
      prompt_tolerance, loss_tolerance = tolerances[count]
      np.testing.assert_allclose(
          metrics["loss"], original[expected + "loss_before"],
          rtol=loss_tolerance)
      np.testing.assert_allclose(
          state_lib.flatten(state.trainable)[PROMPT],
          original[expected + PROMPT], rtol=0, atol=prompt_tolerance)
  assert state.step == first + 20


# --------------------------------------------------------------- what changes


TINY_MODEL = model_with_prompt(TINY, 3)
ADAFACTOR = Adafactor(0.3, multiply_by_parameter_scale=False)
adafactor_step = jax.jit(step_lib.make_train_step(TINY_MODEL, ADAFACTOR))


@pytest.mark.parametrize("patterns", [
    [".*/prompt/.*"], [".*/prompt/.*", "decoder/.*"]])
def test_the_trainable_change_and_the_frozen_do_not(patterns):
  state, frozen = start(TINY_MODEL, ADAFACTOR, patterns)
  frozen = jax.tree.map(jnp.asarray, frozen)
  first, frozen_first = bits(state.trainable), bits(frozen)
  for _ in range(3):
    state, metrics = adafactor_step(state, frozen, tiny_batch(), RNG)
  assert metrics["is_finite"] and state.step == 3
  assert bits(frozen) == frozen_first
  last = bits(state.trainable)
  assert set(last) == {
      path for path in first | frozen_first
      if state_lib.match_any(patterns)(path)}
  assert not {path for path in last if last[path] == first[path]}


def test_frozen_weights_do_not_come_back():
  """What a step returns is as small as the prompt and its optimizer state."""
  state, frozen = start(TINY_MODEL, ADAFACTOR)
  after, metrics = jax.eval_shape(
      adafactor_step, state, frozen, tiny_batch(), RNG)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
      lambda x: (x.shape, x.dtype), state)
  assert all(x.shape == () for x in metrics.values())
  assert set(metrics) == {
      "loss", "z_loss", "correct", "tokens", "gradient_norm", "is_finite"}


def test_a_batch_that_is_not_finite_leaves_the_state():
  state, frozen = start(TINY_MODEL, ADAFACTOR, step=7)
  state, metrics = adafactor_step(state, frozen, tiny_batch(), RNG)
  assert metrics["is_finite"]
  batch = tiny_batch()
  for value in (np.nan, np.inf):
    batch["decoder_loss_weights"][1, 0] = value
    after, metrics = adafactor_step(state, frozen, batch, RNG)
    assert not metrics["is_finite"]
    jax.tree.map(
        np.testing.assert_array_equal, after._replace(step=state.step), state)
    assert after.step == state.step + 1
  # And it goes on.
  after, metrics = adafactor_step(after, frozen, tiny_batch(), RNG)
  assert metrics["is_finite"]
  assert bits(after.trainable) != bits(state.trainable)


# ------------------------------------------------ accumulation, normalisation

SGD = optax.sgd(1.0)  # the update is the gradient


@functools.cache
def compiled_step(num_microbatches, factor):
  return jax.jit(step_lib.make_train_step(
      model_with_prompt(TINY, 3, loss_normalizing_factor=factor), SGD,
      num_microbatches))


@functools.cache
def one_update(num_microbatches=1, factor=None):
  """Metrics, and how the prompt moves by gradient descent of rate 1."""
  state, frozen = start(TINY_MODEL, SGD)
  before = state_lib.flatten(state.trainable)[PROMPT]
  state, metrics = compiled_step(num_microbatches, factor)(
      state, frozen, tiny_batch(), RNG)
  return metrics, state_lib.flatten(state.trainable)[PROMPT] - before


@pytest.fixture(scope="module", autouse=True)
def _forget_what_was_compiled():
  yield
  one_update.cache_clear()
  compiled_step.cache_clear()


@pytest.mark.parametrize("count, factor", [(2, None), (4, "num_tokens")])
def test_accumulated_gradients_are_those_of_the_batch(count, factor):
  # Slices have 7 and 3, or 4, 3, 2 and 1 tokens: a mean of their means is
  # not the batch's mean.
  metrics, moved = one_update(count, factor)
  expected_metrics, expected = one_update(1, factor)
  np.testing.assert_allclose(moved, expected, rtol=1e-6, atol=1e-6)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6),
               metrics, expected_metrics)
  assert metrics["tokens"] == 10


@pytest.mark.parametrize("factor, divisor", [("num_tokens", 10), (2.5, 2.5)])
def test_loss_normalizing_factor_divides_the_gradient(factor, divisor):
  summed_metrics, summed = one_update()
  metrics, moved = one_update(factor=factor)
  np.testing.assert_allclose(moved, summed / divisor, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(
      metrics["gradient_norm"], summed_metrics["gradient_norm"] / divisor,
      rtol=1e-6)
  np.testing.assert_allclose(
      metrics["gradient_norm"], np.linalg.norm(moved), rtol=1e-5)
  assert metrics["loss"] == summed_metrics["loss"]  # metrics stay sums


def test_a_batch_without_targets_moves_nothing():
  state, frozen = start(TINY_MODEL, SGD)
  batch = tiny_batch()
  batch["decoder_loss_weights"] *= 0
  after, metrics = compiled_step(1, "num_tokens")(state, frozen, batch, RNG)
  assert metrics["is_finite"] and metrics["gradient_norm"] == 0
  assert bits(after.trainable) == bits(state.trainable)


@pytest.mark.parametrize("factor", ["tokens", 0.0, -1.0])
def test_unknown_loss_normalizing_factor(factor):
  model = model_with_prompt(TINY, 3, loss_normalizing_factor=factor)
  with pytest.raises(
      UserError, match=f"LOSS_NORMALIZING_FACTOR.*{factor!r}.*num_tokens"):
    step_lib.make_train_step(model, SGD)


def test_dropout_depends_on_the_step_and_only_if_it_is_used():
  model = model_with_prompt(
      t5.Config(**{**TINY.__dict__, "dropout_rate": 0.5}), 3)
  state, frozen = start(model, SGD)
  plain, dropped = (
      jax.jit(lambda step, rng, use=use: step_lib.make_train_step(
          model, SGD, use_dropout=use)(
              state._replace(step=step), frozen, tiny_batch(), rng)[1]["loss"])
      for use in (False, True))
  # JAX's default generator takes ten times longer to compile.
  one, other = (jax.random.key(i, impl="unsafe_rbg") for i in (0, 1))
  assert plain(0, one) == plain(1, one) == plain(0, other)
  losses = [dropped(0, one), dropped(1, one), dropped(0, other), plain(0, one)]
  assert len(set(map(float, losses))) == 4
  assert dropped(1, one) == losses[1]


def test_other_steps_give_the_model_the_merged_trees():
  params = {"encoder": {"prompt": 1, "mlp": 2}, "decoder": 3}
  trees = state_lib.split(params, [".*/prompt"])
  model = types.SimpleNamespace(
      loss=lambda *given: (None, ("loss", *given)),
      score=lambda *given: ("score", *given),
      predict=lambda *given: ("predict", *given))
  assert step_lib.make_eval_step(model)(*trees, "batch") == (
      "loss", params, "batch")
  assert step_lib.make_score_step(model)(*trees, "batch") == (
      "score", params, "batch")
  predict = step_lib.make_predict_step(model)
  assert predict(*trees, "batch", "rng") == (
      "predict", params, "batch", "rng")
  assert predict(*trees, "batch") == ("predict", params, "batch", None)


# ------------------------------------------------------------------ its costs

# Large enough for matmuls to be most of the work.
SIZED = t5.Config(
    vocab_size=256, embed_dim=64, num_heads=4, head_dim=16, mlp_dim=128,
    num_encoder_layers=2, num_decoder_layers=2)
B, T, P, U = 4, 24, 8, 8


class Shift(nn.Module):
  """Adds a parameter to the embedded input, to differentiate by the input."""

  @nn.compact
  def __call__(self, x, x_embed):
    del x
    return x_embed + self.param("shift", nn.initializers.zeros, x_embed.shape)


def sized_batch(inputs):
  return {
      "encoder_input_tokens": jnp.ones((B, inputs), jnp.int32),
      "decoder_input_tokens": jnp.ones((B, U), jnp.int32),
      "decoder_target_tokens": jnp.ones((B, U), jnp.int32),
      "decoder_loss_weights": jnp.ones((B, U))}


def flops(function, *arguments):
  costs = jax.jit(function).lower(*arguments).compile().cost_analysis()
  return costs["flops"]


def step_flops(patterns):
  model = model_with_prompt(SIZED, P)
  return flops(step_lib.make_train_step(model, SGD),
               *start(model, SGD, patterns), sized_batch(T), RNG)


def input_gradient_flops():
  """Of the loss, and its gradient by P + T embedded inputs, in JAX alone."""
  vocabulary = types.SimpleNamespace(eos_id=1)
  model = encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(SIZED, Shift), vocabulary, vocabulary)
  plain = encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(SIZED), vocabulary, vocabulary)

  def loss(shift, params):
    params = {**params, "encoder": {
        **params["encoder"], "prompt": {"shift": shift}}}
    return model.loss(params, sized_batch(P + T))[0]

  return flops(jax.value_and_grad(loss), jnp.zeros((B, P + T, 64)),
               random_params(plain))


def matmul_flops(backward_weights):
  """The matmuls of a step on paper: forward, and backward to activations.

  Args:
    backward_weights: whether gradients of kernels are taken too.

  Returns:
    FLOPs, two for each multiplication.
  """
  c, s = SIZED, P + T
  inner = c.num_heads * c.head_dim
  projection, mlp = c.embed_dim * inner, 3 * c.embed_dim * c.mlp_dim
  encoder = s * (4 * projection + mlp) * c.num_encoder_layers
  decoder = (U * (6 * projection + mlp) + s * 2 * projection
             ) * c.num_decoder_layers
  logits = U * c.embed_dim * c.vocab_size
  attention = 2 * inner * (
      s * s * c.num_encoder_layers + U * (U + s) * c.num_decoder_layers)
  kernels = encoder + decoder + logits
  # One matmul back for each operand that has a gradient: attention has two.
  back = kernels * (2 if backward_weights else 1) + 2 * attention
  return 2 * B * (kernels + attention + back)


def test_a_prompt_costs_forward_and_activation_gradients():
  prompt_only = step_flops([".*/prompt/.*"])
  everything = step_flops([".*"])
  by_input = input_gradient_flops()
  assert abs(prompt_only / by_input - 1) < 0.1
  # Norms, gates and softmax come on top; what leads to the targets' embeddings
  # alone needs no gradient and is left out.
  assert abs(prompt_only / matmul_flops(False) - 1) < 0.1
  assert abs(everything / matmul_flops(True) - 1) < 0.1
  # So `gradient_norm`, which every step gives, is not over all parameters:
  # that would bring back what is saved here.
  assert everything > 1.4 * prompt_only
