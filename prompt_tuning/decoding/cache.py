"""What happens to a decoding cache when rows are copied and reordered.

A cache is a nested dict of arrays with the batch on `batch_axis`, which its
module tells: T5's leaves are [B, ...], or [L, B, ...] when layers are scanned.
Leaves of three names belong to the whole batch and pass through unchanged, as
they do in T5X:
`cache_index`, the number of positions written (a scalar, or [L] when scanned),
`cached_bias` and `position_embedder_index`.
"""

from collections.abc import Callable

import jax
from jax import lax, tree_util
import jax.numpy as jnp

from prompt_tuning.decoding import Cache

SHARED_LEAVES = frozenset(
    ["cache_index", "cached_bias", "position_embedder_index"])


# Leaves [..., S, D] of our own modules, with a row for each position.
_BY_POSITION = frozenset(["cached_key", "cached_value"])


def _map_rows(function: Callable[[jax.Array, str], jax.Array], cache: Cache):
  """Applies `function` to the leaves, and names, that have a batch axis."""

  def visit(path, leaf):
    name = path[-1].key if path else None
    return leaf if name in SHARED_LEAVES else function(leaf, name)

  return tree_util.tree_map_with_path(visit, cache)


def expand(cache: Cache, k: int, batch_axis: int = 0) -> Cache:
  """Repeats each row k times, side by side: B rows become B * k."""
  return _map_rows(
      lambda leaf, _: jnp.repeat(leaf, k, axis=batch_axis), cache)


def gather(
    cache: Cache, indices: jax.Array, batch_axis: int = 0, alike: int = 0
) -> Cache:
  """Replaces each example's rows by a selection of the same example's rows.

  Args:
    cache: leaves with B * k rows.
    indices: [B, j] int, the rows to take, each in 0 .. k - 1 and counted
      within its example.
    batch_axis: where the leaves have their rows.
    alike: so many first positions of keys and values are the same in all rows
      of an example, as the inputs' are, and stay where they are; j is k then.

  Returns:
    The cache with B * j rows.
  """
  batch = indices.shape[0]

  # A gather with the example as its batch dimension, and not one gather over
  # B * k rows: the partitioner then sees that no row crosses an example, and
  # a batch that is sharded over devices needs no communication here.
  def select(leaf):
    before, after = leaf.shape[:batch_axis], leaf.shape[batch_axis + 1:]
    rows = leaf.reshape(*before, batch, -1, *after)  # [..., B, k, ...]
    take = jax.vmap(
        lambda x, i: jnp.take(x, i, axis=batch_axis),
        in_axes=(batch_axis, 0), out_axes=batch_axis)
    return take(rows, indices).reshape(*before, -1, *after)

  def visit(leaf, name):
    if not alike or name not in _BY_POSITION:
      return select(leaf)
    # In a loop this is written in place: only what differs is ever copied.
    return lax.dynamic_update_slice_in_dim(
        leaf, select(leaf[..., alike:, :]), alike, axis=leaf.ndim - 2)

  return _map_rows(visit, cache)
