"""Frozen matrices in int8: a quarter of float32's memory, half of bfloat16's.

`Int8` stands in a parameter tree where the array would stand, and the layers
use either through `matmul`, `take` and `attend`. Rounding is symmetric, with
one scale an output channel (Jacob et al. 2017, arXiv 1712.05877, 2.1;
Dettmers et al. 2022, arXiv 2208.07339, 2.1): a column of a kernel, a row of an
embedding table. Products are computed in the activations' dtype, which holds
every int8 exactly, and scaled afterwards; activations are never rounded.
"""

from collections.abc import Iterable
import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.models import products

Array = jax.Array

_LARGEST = 127

# The axis that shares a scale, by the parameter's name.
_AXES = {"kernel": -2, "embedding": -1}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
  """`values * scale`, a frozen matrix or a stack of them.

  Attributes:
    values: int8, in the shape of the array that it stands for. It is the
      first leaf, so that Flax compares its shape with the parameter's.
    scale: float32, of that shape but for a 1 where the scale is shared:
      [1, F] of a kernel [H, F], [V, 1] of an embedding table [V, H].
  """

  values: Array
  scale: Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.values.shape

  @property
  def dtype(self):
    return self.values.dtype

  def astype(self, dtype) -> Array:
    """The whole array, for uses that are no product."""
    return (self.values.astype(jnp.float32) * self.scale).astype(dtype)


Matrix = Array | Int8


def matmul(x: Array, kernel: Matrix) -> Array:
  """`x @ kernel` in x's dtype: [..., H], [H, F] -> [..., F]."""
  if isinstance(kernel, Int8):
    return _scaled_product(x, kernel, x.dtype)
  return (products.matmul(x, kernel) if kernel.dtype == x.dtype
          else _cast_product(x, kernel))


def take(table: Matrix, tokens: Array) -> Array:
  """Rows of a table [V, H]: ids [...] -> [..., H]."""
  if isinstance(table, Int8):
    return jnp.take(table.values, tokens, axis=0) * jnp.take(
        table.scale, tokens, axis=0)
  return jnp.take(table, tokens, axis=0)


def attend(x: Array, table: Matrix) -> Array:
  """Logits against a table [V, H]: [..., H] -> [..., V], float32."""
  if isinstance(table, Int8):
    return _scaled_product(
        x, Int8(table.values.T, table.scale.T), jnp.float32)
  logits = products.einsum(
      "rh,vh->rv", x.reshape(-1, x.shape[-1]), table.astype(x.dtype),
      jnp.float32)
  return logits.reshape(*x.shape[:-1], -1)


# Backpropagation needs a converted matrix once more. Left alone, XLA keeps that
# of the forward pass until then, for all layers together as much memory as the
# matrices unquantised, and converts all of them before a loop (of decoding, of
# the members of a sweep). The barriers hold each conversion back until its
# product is due.


@jax.checkpoint
def _cast_product(x: Array, kernel: Array) -> Array:
  return products.matmul(x, kernel.astype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scaled_product(x: Array, kernel: Int8, dtype) -> Array:
  """`x @ kernel`; the kernel is frozen and gets no gradient."""
  x, kernel = lax.optimization_barrier((x, kernel))
  product = jnp.matmul(
      x, kernel.values.astype(x.dtype), preferred_element_type=jnp.float32)
  return (product * kernel.scale[0]).astype(dtype)


def _forward(x: Array, kernel: Int8, dtype):
  # An empty array of x's dtype: what is kept must be arrays.
  return _scaled_product(x, kernel, dtype), (kernel, jnp.zeros(0, x.dtype))


def _backward(dtype, kept, gradient: Array):
  del dtype
  kernel, like = kept
  kernel, gradient = lax.optimization_barrier((kernel, gradient))
  scaled = (gradient * kernel.scale[0]).astype(like.dtype)
  return products.matmul(scaled, kernel.values.astype(like.dtype).T), None


_scaled_product.defvjp(_forward, _backward)


# ------------------------------------------------------------------ quantising


def axis_of(path: str) -> int | None:
  """The axis of a parameter that shares a scale; None if it stays as it is.

  Kernels and embedding tables are nearly all of a model; norms, biases and
  position biases are small, and their errors would not average out.
  """
  return _AXES.get(path.rsplit("/", 1)[-1])


def abstract(spec: jax.ShapeDtypeStruct, axis: int) -> Int8:
  """What an array becomes, as shapes with its sharding.

  Args:
    spec: the array's, with or without a sharding.
    axis: see `axis_of`.
  """
  shape = list(spec.shape)
  shape[axis] = 1
  sharding = spec.sharding
  if isinstance(sharding, jax.sharding.NamedSharding):
    names = list(sharding.spec) + [None] * (len(shape) - len(sharding.spec))
    names[axis] = None
    sharding = jax.sharding.NamedSharding(
        sharding.mesh, jax.sharding.PartitionSpec(*names))
  return Int8(
      jax.ShapeDtypeStruct(spec.shape, jnp.int8, sharding=spec.sharding),
      jax.ShapeDtypeStruct(tuple(shape), jnp.float32, sharding=sharding))


Block = tuple[tuple[slice, ...], np.ndarray]


def scales(
    blocks: Iterable[Block], shape: tuple[int, ...], axis: int
) -> np.ndarray:
  """The scales of an array that is read in blocks.

  Args:
    blocks: (index, values), see `checkpoints.BaseWeights.blocks`.
    shape: of the scales.
    axis: see `axis_of`.

  Returns:
    float32, such that the largest value of a channel becomes 127. Of a channel
    with NaN or infinity it is no number either, so that what is broken shows.
  """
  largest = np.zeros(shape, np.float32)
  for index, block in blocks:
    part = largest[_shared(index, axis)]
    found = np.max(np.abs(block), axis=axis, keepdims=True)
    np.maximum(part, found.astype(np.float32), out=part)
  return np.where(largest == 0, np.float32(1), largest / _LARGEST)


def rounded(
    blocks: Iterable[Block], scale: np.ndarray, axis: int
) -> Iterable[Block]:
  """The blocks in int8.

  Args:
    blocks: see `scales`.
    scale: from `scales`.
    axis: see `axis_of`.

  Yields:
    (index, int8 values).
  """
  for index, block in blocks:
    with np.errstate(invalid="ignore"):
      yield index, np.rint(
          block.astype(np.float32) / scale[_shared(index, axis)]
      ).astype(np.int8)


def _shared(index: tuple[slice, ...], axis: int) -> tuple[slice, ...]:
  """Where the scales of a block stand."""
  index = list(index)
  index[axis] = slice(0, 1)
  return tuple(index)
