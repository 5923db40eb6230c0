"""Several runs as one program: their trainable trees on a new leading axis K.

The frozen network belongs to all of them and is in memory once. Where members
are computed at once, `jax.vmap` makes K a part of the rows in each product with
a frozen kernel, [K, B, T, H] @ [H, F], so that a step reads the kernel once,
and what depends on no trained parameter (the embedded batch, a decoder's first
self-attention) is computed once if the members share the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompt_tuning.data import batches
from prompt_tuning.train import sharding
from prompt_tuning.train import step as step_lib

Tree = Any


def stack(trees: Sequence[Tree]) -> Tree:
  """K like trees -> one with a leading axis K."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def shardings(tree: Tree) -> Tree:
  """The shardings of stacked leaves: every device has all K of its part."""
  return jax.tree.map(
      lambda where: jax.sharding.NamedSharding(
          where.mesh, jax.sharding.PartitionSpec(None, *where.spec)), tree)


def make_train_step(
    model,
    optimizers: Sequence[optax.GradientTransformation],
    num_microbatches: int = 1,
    use_dropout: bool = False,
    one_batch: bool = False,
    at_once: int | None = None,
) -> Callable[..., tuple[step_lib.TrainState, dict[str, jax.Array]]]:
  """Builds the update of all members.

  Args:
    model: see `step.make_train_step`.
    optimizers: each member's. Those that are the same object are updated
      together; each other one makes the program longer.
    num_microbatches: see `step.make_train_step`.
    use_dropout: see `step.make_train_step`.
    one_batch: whether the members share their batch.
    at_once: how many members' activations lie in memory at a time; None for
      all on accelerators, which they keep busy, and for one on CPU, where a
      larger working set only misses the caches. (T5 with 4 + 4 layers of
      width 256, 8 members with batches of 8: one at a time takes 0.8 of the
      time of 8 single steps and as much memory as one of them; all at once
      1.3 of the time and 9 times the memory.)

  Returns:
    A function (state, frozen, batch, rngs, is_running) -> (new state,
    metrics). But for its step, all of the state is stacked. Batches are [B,
    ...] if `one_batch`, [K, B, ...] if not; `rngs` [K] keys; `is_running` [K]
    bool, False keeps a member as it is. Metrics are [K].
  """
  gradient = step_lib.make_gradient(model, num_microbatches, use_dropout)
  if at_once is None:
    at_once = 1 if jax.default_backend() == "cpu" else len(optimizers)
  distinct = {id(optimizer): optimizer for optimizer in optimizers}
  groups = [
      (optimizer, np.array([
          k for k, other in enumerate(optimizers) if other is optimizer]))
      for optimizer in distinct.values()]
  order = np.argsort(np.concatenate([rows for _, rows in groups]))

  def train_step(state, frozen, batch, rngs, is_running):
    def one(trainable, rng, own_batch=batch):
      return gradient(trainable, frozen, own_batch, rng, state.step)

    own = (state.trainable, rngs, *([] if one_batch else [batch]))
    gradients, sums = _over_members(one, own, at_once)
    stacked = (
        state.trainable, state.optimizer_state, gradients, sums, is_running)
    parts = [
        jax.vmap(_updater(optimizer, state.step))(*_rows(stacked, rows))
        for optimizer, rows in groups]
    trainable, optimizer_state, metrics = parts[0] if len(
        parts) == 1 else jax.tree.map(
            lambda *leaves: jnp.concatenate(leaves)[order], *parts)
    return step_lib.TrainState(
        state.step + 1, trainable, optimizer_state), metrics

  return train_step


def _over_members(function, arguments: tuple, at_once: int) -> Tree:
  """What the function gives for each of K, `at_once` of them in parallel."""
  if at_once >= len(jax.tree.leaves(arguments)[0]):
    return jax.vmap(function)(*arguments)
  return jax.lax.map(
      lambda own: function(*own), arguments,
      batch_size=at_once if at_once > 1 else None)


def _rows(tree: Tree, rows: np.ndarray) -> Tree:
  return jax.tree.map(
      lambda x: x if len(rows) == len(x) else x[rows], tree)


def _updater(optimizer: optax.GradientTransformation, step: jax.Array):
  """One member's part of the update."""

  def update(trainable, optimizer_state, gradients, sums, is_running):
    old = step_lib.TrainState(step, trainable, optimizer_state)
    new, metrics = step_lib.update(optimizer, old, gradients, sums)
    new = jax.tree.map(
        lambda new, old: jnp.where(is_running, new, old), new, old)
    return new.trainable, new.optimizer_state, metrics

  return update


class Batches:
  """The members' streams of batches, as one stream."""

  def __init__(
      self, streams: Sequence[batches.TrainBatches], of_member: Sequence[int]
  ):
    """Joins streams.

    Args:
      streams: different ones.
      of_member: which stream is each member's.
    """
    self._streams = streams
    self._of_member = of_member

  @property
  def is_one(self) -> bool:
    """Whether all members have the same batches: [B, ...], not [K, B, ...]."""
    return len(self._streams) == 1

  def next_on(self, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """The next batch of each stream, on its devices."""
    found = [next(stream) for stream in self._streams]
    if self.is_one:
      return sharding.put_batch(found[0], mesh)
    return sharding.put_batch(
        stack_batches([found[i] for i in self._of_member]), mesh, axis=1)

  def get_state(self) -> list[dict[str, Any]]:
    """See `data.batches.TrainBatches`."""
    return [stream.get_state() for stream in self._streams]

  def set_state(self, states: Sequence[Mapping[str, Any]]) -> None:
    """See `data.batches.TrainBatches`."""
    for stream, state in zip(self._streams, states, strict=True):
      stream.set_state(state)


def stack_batches(
    found: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Batches of several lengths -> one of the longest: [K, B, length].

  Padding goes to the end, where every model's masks hide it.
  """
  out = {}
  for name in found[0]:
    length = max(one[name].shape[1] for one in found)
    out[name] = np.stack([
        np.pad(one[name], ((0, 0), (0, length - one[name].shape[1])))
        for one in found])
  return out
