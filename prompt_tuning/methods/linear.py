"""The dense layer of reparametrised prompts: `x @ kernel + bias`.

It starts as torch's `nn.Linear` does, for P-tuning and prefix tuning were tuned
from there, and is never split over devices: it is small and folded on save.
"""

import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp

Array = jax.Array


def uniform_fan_in(fan_in: int):
  """The initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's for layers."""
  bound = fan_in**-0.5

  def initialize(rng, shape, dtype=jnp.float32):
    return jax.random.uniform(rng, shape, dtype, -bound, bound)

  return initialize


class Linear(nn.Module):
  """[..., in] -> [..., features].

  Attributes:
    features: the output's width.
    axes: logical names of the kernel's two axes.
    zero: start at 0 instead.
  """

  features: int
  axes: tuple[str, str]
  zero: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = x.shape[-1]
    start = nn.initializers.zeros if self.zero else uniform_fan_in(width)
    kernel = partitioning.param_with_axes(
        "kernel", start, (width, self.features), jnp.float32, axes=self.axes)
    bias = partitioning.param_with_axes(
        "bias", start, (self.features,), jnp.float32, axes=self.axes[1:])
    return x @ kernel + bias
