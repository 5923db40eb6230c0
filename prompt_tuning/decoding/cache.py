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
from jax import tree_util
import jax.numpy as jnp

from prompt_tuning.decoding import Cache

SHARED_LEAVES = frozenset(
    ["cache_index", "cached_bias", "position_embedder_index"])


def _map_rows(function: Callable[[jax.Array], jax.Array], cache: Cache):
  """Applies `function` to the leaves that have a batch axis."""

  def visit(path, leaf):
    name = path[-1].key if path else None
    return leaf if name in SHARED_LEAVES else function(leaf)

  return tree_util.tree_map_with_path(visit, cache)


def expand(cache: Cache, k: int, batch_axis: int = 0) -> Cache:
  """Repeats each row k times, side by side: B rows become B * k."""
  return _map_rows(lambda leaf: jnp.repeat(leaf, k, axis=batch_axis), cache)


def gather(cache: Cache, indices: jax.Array, batch_axis: int = 0) -> Cache:
  """Replaces each example's rows by a selection of the same example's rows.

  Args:
    cache: leaves with B * k rows.
    indices: [B, j] int, the rows to take, each in 0 .. k - 1 and counted
      within its example.
    batch_axis: where the leaves have their rows.

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

  return _map_rows(select, cache)
