"""The compiled steps: one update of the trainable tree, one evaluation.

The frozen tree is an argument of every step, never closed over (it would be
baked into the program) and never returned. Only the trainable tree is
differentiated, so a prompt costs the forward pass and the backward pass to
activations, 4N FLOPs a token instead of 6N.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prompt_tuning import errors
from prompt_tuning.train import state as state_lib

Tree = Any


class TrainState(NamedTuple):
  """All that an update changes; all that a checkpoint holds.

  Attributes:
    step: scalar int32, the run's step, the base checkpoint's included.
    trainable: the trained parameters, float32.
    optimizer_state: what optax keeps for them.
  """

  step: jax.Array
  trainable: Tree
  optimizer_state: Tree


_LEAST_MEMORY = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "cse_barrier_expander"}


@functools.cache
def compiler_options() -> dict[str, str] | None:
  """What to tell XLA about a training step on this process's backend.

  On CPU, XLA orders independent operations to run side by side by default,
  which keeps more of them in memory (643 instead of 502 MB for T5 small, batch
  8, inputs 128, prompt 100); a step's products use all cores anyway. And it
  drops the barriers of `jax.checkpoint`, then finds that what is to be
  computed again was computed before, and keeps it.

  Returns:
    Options for `jax.jit`; None on other backends and where this release of
    XLA does not know them.
  """
  if jax.default_backend() != "cpu":
    return None
  try:
    jax.jit(jnp.negative, compiler_options=_LEAST_MEMORY)(1.0)
  except jax.errors.JaxRuntimeError:
    return None
  return _LEAST_MEMORY


def compiled_update(function, state_shapes: TrainState):
  """Compiles an update; the state it is given is used up, not copied.

  Args:
    function: (state, …) -> (new state, metrics).
    state_shapes: shapes and shardings of the state, which it keeps.

  Returns:
    The same function.
  """
  return jax.jit(
      function, donate_argnums=0, compiler_options=compiler_options(),
      out_shardings=(jax.tree.map(lambda s: s.sharding, state_shapes), None))


def make_train_step(
    model,
    optimizer: optax.GradientTransformation,
    num_microbatches: int = 1,
    use_dropout: bool = False,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Builds the update.

  Args:
    model: see `models.encoder_decoder.EncoderDecoderModel`.
    optimizer: gradient transformation of the trainable tree.
    num_microbatches: the batch is cut into this many, one after the other,
      and their gradients are added: less memory, same result.
    use_dropout: whether frozen layers run with the module's dropout rate.

  Returns:
    A function (state, frozen, batch, rng) -> (new state, metrics). Metrics
    are scalars: sums over the batch, `gradient_norm` (of the trainable tree
    alone) and `is_finite`. If the loss, a gradient or an update is not finite
    the state comes back as it was, but for its step.

  Raises:
    UserError: if the model's `loss_normalizing_factor` is not one.
  """
  gradient = make_gradient(model, num_microbatches, use_dropout)

  def train_step(state: TrainState, frozen: Tree, batch, rng: jax.Array):
    gradients, sums = gradient(
        state.trainable, frozen, batch, rng, state.step)
    return update(optimizer, state, gradients, sums)

  return train_step


def make_gradient(
    model, num_microbatches: int = 1, use_dropout: bool = False
) -> Callable[..., tuple[Tree, dict[str, jax.Array]]]:
  """Builds the first half of a step, see `make_train_step`.

  Returns:
    A function (trainable, frozen, batch, rng, step) -> (gradient of the
    normalised loss to the trainable tree, sums over the batch).

  Raises:
    UserError: if the model's `loss_normalizing_factor` is not one.
  """
  _check_factor(model.loss_normalizing_factor)

  def loss(trainable, frozen, batch, rng):
    params = state_lib.merge(trainable, frozen)
    total, sums = model.loss(params, batch, rng)
    return total, sums

  gradient = jax.grad(loss, has_aux=True)

  def normalized(trainable: Tree, frozen: Tree, batch, rng, step: jax.Array):
    rng = jax.random.fold_in(rng, step) if use_dropout else None
    if num_microbatches == 1:
      gradients, sums = gradient(trainable, frozen, batch, rng)
    else:
      gradients, sums = _accumulate(
          functools.partial(gradient, trainable, frozen), batch, rng,
          num_microbatches)
    scale = _normalizer(model.loss_normalizing_factor, sums)
    return jax.tree.map(lambda g: g / scale, gradients), sums

  return normalized


def update(
    optimizer: optax.GradientTransformation, state: TrainState,
    gradients: Tree, sums: dict[str, jax.Array],
) -> tuple[TrainState, dict[str, jax.Array]]:
  """The second half of a step: gradient and sums -> new state and metrics."""
  norm = optax.tree.norm(gradients)
  updates, optimizer_state = optimizer.update(
      gradients, state.optimizer_state, state.trainable)
  # A learning rate may take finite gradients out of float32's range.
  is_finite = (jnp.isfinite(norm) & jnp.isfinite(sums["loss"])
               & jnp.isfinite(optax.tree.norm(updates)))
  updated = state._replace(
      trainable=optax.apply_updates(state.trainable, updates),
      optimizer_state=optimizer_state)
  kept = jax.tree.map(
      lambda new, old: jnp.where(is_finite, new, old), updated, state)
  metrics = {**sums, "gradient_norm": norm, "is_finite": is_finite}
  return kept._replace(step=state.step + 1), metrics


def _check_factor(factor: float | str | None):
  if factor is None or factor == "num_tokens":
    return
  if not isinstance(factor, (int, float)) or not factor > 0:
    raise errors.UserError(
        f"LOSS_NORMALIZING_FACTOR is {factor!r}: give a number above 0, "
        "'num_tokens' for the mean over target tokens, or None for their sum.")


def _normalizer(factor, sums):
  if factor is None:
    return 1.0
  return jnp.maximum(sums["tokens"], 1.0) if factor == "num_tokens" else factor


def _accumulate(gradient, batch, rng, count: int):
  """Adds up gradients and sums over `count` slices of the batch."""
  slices = jax.tree.map(
      lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)

  def body(total, item):
    index, piece = item
    piece_rng = None if rng is None else jax.random.fold_in(rng, index)
    return jax.tree.map(jnp.add, total, gradient(piece, piece_rng)), None

  first = jax.tree.map(lambda x: x[0], slices)
  zeros = jax.tree.map(
      lambda s: jnp.zeros(s.shape, s.dtype),
      jax.eval_shape(gradient, first, rng))
  total, _ = jax.lax.scan(body, zeros, (jnp.arange(count), slices))
  return total


def make_eval_step(model) -> Callable[..., dict[str, jax.Array]]:
  """A function (trainable, frozen, batch) -> sums over the batch."""

  def eval_step(trainable, frozen, batch):
    return model.loss(state_lib.merge(trainable, frozen), batch)[1]

  return eval_step


def make_predict_step(model) -> Callable[..., jax.Array]:
  """A function (trainable, frozen, batch, rng) -> tokens [B, U]."""

  def predict_step(trainable, frozen, batch, rng=None):
    return model.predict(state_lib.merge(trainable, frozen), batch, rng)

  return predict_step


def make_decodes_step(model) -> Callable[..., jax.Array]:
  """A function (trainable, frozen, batch, rng) -> tokens [B, D, U].

  They are of the D hypotheses or samples of each example.
  """

  def decodes_step(trainable, frozen, batch, rng=None):
    return model.decodes(state_lib.merge(trainable, frozen), batch, rng)[0]

  return decodes_step


def make_score_step(model) -> Callable[..., jax.Array]:
  """A function (trainable, frozen, batch) -> log-probabilities [B]."""

  def score_step(trainable, frozen, batch):
    return model.score(state_lib.merge(trainable, frozen), batch)

  return score_step


def make_label_step(model) -> Callable[..., jax.Array]:
  """A function (trainable, frozen, batch) -> scores of labels [B, C]."""

  def label_step(trainable, frozen, batch):
    return model.label_scores(state_lib.merge(trainable, frozen), batch)

  return label_step


def make_score_first_step(model) -> Callable[..., jax.Array]:
  """A function (trainable, frozen, batch, tokens [C]) -> [B, C]."""

  def score_first_step(trainable, frozen, batch, tokens):
    return model.score_first(
        state_lib.merge(trainable, frozen), batch, tokens)

  return score_first_step
