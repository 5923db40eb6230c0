"""Positions as rotations of queries and keys (Su et al. 2021, 2104.09864).

Frequencies are computed in float32 whatever the activations' dtype.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How frequencies were stretched for longer texts than pretraining's.

  Attributes:
    kind: "linear" divides all by `factor` (Chen et al. 2023, 2306.15595);
      "llama3" only those of wavelengths beyond the original context.
    factor: how much longer.
    low_freq_factor: llama3: wavelengths above original / low are divided.
    high_freq_factor: llama3: wavelengths below original / high are kept.
    original_max_positions: llama3: the context of pretraining.
  """

  kind: str
  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_positions: int = 8192


def frequencies(
    dim: int, theta: float, scaling: RopeScaling | None = None
) -> np.ndarray:
  """Radians a position of each of the `dim` / 2 planes: float32."""
  rates = (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / dim)
           ).astype(np.float32)
  if scaling is None:
    return rates
  if scaling.kind == "linear":
    return rates / np.float32(scaling.factor)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  turns = scaling.original_max_positions * rates / (2 * np.pi)
  kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return (rates * (kept + (1.0 - kept) / scaling.factor)).astype(np.float32)


def angles(positions: Array, rates: np.ndarray) -> tuple[Array, Array]:
  """Positions [B, T] -> cosines and sines [B, 1, T, dim / 2], float32."""
  turned = positions.astype(jnp.float32)[:, None, :, None] * rates
  # The barrier keeps XLA from computing them again for every head and layer.
  return lax.optimization_barrier((jnp.cos(turned), jnp.sin(turned)))


def rotate(
    x: Array, cos: Array, sin: Array, interleaved: bool = False
) -> Array:
  """Rotates the first features of queries or keys.

  Args:
    x: [..., B, N, T, D].
    cos: [B, 1, T, R / 2] with R <= D; features from R on stay.
    sin: the same.
    interleaved: planes are neighbouring features (GPT-J, CodeGen) and not
      feature i with feature i + R / 2 (Llama, Phi).

  Returns:
    [..., B, N, T, D] in the dtype of x.
  """
  half = cos.shape[-1]
  turned, rest = x[..., :2 * half].astype(jnp.float32), x[..., 2 * half:]
  if interleaved:
    first, second = turned[..., 0::2], turned[..., 1::2]
  else:
    first, second = turned[..., :half], turned[..., half:]
  pair = (first * cos - second * sin, second * cos + first * sin)
  if interleaved:
    turned = jnp.stack(pair, axis=-1).reshape(turned.shape)
  else:
    turned = jnp.concatenate(pair, axis=-1)
  return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)
