"""LOPA: a shared prompt, gated by a low-rank matrix of each example.

    Z = Z_S * sigmoid(U V^T)

Jain et al. 2024 (arXiv 2405.15282). Z_S [P, H] is a plain prompt; U [P, R] and
V [H, R] are made by two heads of an encoding of the example. The other ways to
join the two are the paper's ablation ("function encoding Z").

    train_prompts.Prompt.prompt = @low_rank.LowRankPrompt()
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import errors, prompts
from prompt_tuning.methods import heads

Array = jax.Array


def product(row: Array, column: Array) -> Array:
  """U [B, P, R] and V [B, H, R] -> U V^T [B, P, H]."""
  return jnp.einsum("bpr,bhr->bph", row, column)


def gate(shared: Array, own: Array) -> Array:
  """Shared [P, H], scaled by the sigmoid of own [B, P, H]."""
  return shared * jax.nn.sigmoid(own)


def add(shared: Array, own: Array) -> Array:
  """Shared [P, H] + own [B, P, H]."""
  return shared + own


def maximum(shared: Array, own: Array) -> Array:
  """The larger of shared [P, H] and own [B, P, H], number by number."""
  return jnp.maximum(shared, own)


def concat(shared: Array, own: Array) -> Array:
  """Shared [P, H], then own [B, P, H]: [B, 2 P, H]."""
  return jnp.concatenate([prompts.expand_to_batch(shared, own), own], axis=1)


FUSIONS: dict[str, Callable[[Array, Array], Array]] = {
    "gate": gate, "concat": concat, "add": add, "max": maximum}


class LowRankPrompt(nn.Module):
  """A prompt for each example, of a shared one and two heads.

  Parameters lie under `shared`, `row` and `column`.

  Attributes:
    shared: the module that gives Z_S, `prompts.Prompt`.
    rank: R.
    fusion: a key of `FUSIONS`; "concat" makes the prompt twice as long.
    head: makes a head, called with `features` and `name`.
    encoder: trained with the prompt, see `heads.trained_encoder`; None if the
      encodings are given.
    dtype: of the prompt; parameters are float32.
  """

  shared: nn.Module
  rank: int = 1
  fusion: str = "gate"
  head: Callable[..., nn.Module] = heads.Head
  encoder: nn.Module | None = None
  dtype: jnp.dtype = jnp.float32

  @property
  def options(self) -> dict[str, Any]:
    """What a file of its parameters says, see `formats.instance`."""
    return {"method": "lopa", "length": self.shared.length, "rank": self.rank,
            "fusion": self.fusion, "freeze_encoder": self.encoder is None}

  @nn.compact
  def __call__(
      self, x: Array, x_embed: Array,
      instance: prompts.Instance | None = None,
  ) -> Array:
    """The prompt of each example.

    Args:
      x: [B, T] tokens.
      x_embed: [B, T, H] their embeddings.
      instance: with the encoding; None: see `heads.encoding_of`.

    Returns:
      [B, P, H], or [B, 2 P, H] if concatenated.

    Raises:
      UserError: on a rank above P or H, or a fusion that does not exist.
    """
    shared = self.shared(x, x_embed).astype(jnp.float32)  # [P, H]
    length, width = shared.shape
    self._check(length, width)
    encoding = heads.encoding_of(self.encoder, x, x_embed, instance)
    row = self.head(features=length * self.rank, name="row")(encoding)
    column = self.head(features=width * self.rank, name="column")(encoding)
    own = product(
        row.reshape(-1, length, self.rank),
        column.reshape(-1, width, self.rank))
    return FUSIONS[self.fusion](shared, own).astype(self.dtype)

  def _check(self, length: int, width: int):
    if self.fusion not in FUSIONS:
      raise errors.UserError(
          f"FUSION is {self.fusion!r}: it can be {', '.join(FUSIONS)}.")
    if not 1 <= self.rank <= min(length, width):
      raise errors.UserError(
          f"LOPA_RANK is {self.rank}, and a prompt of length {length} and "
          f"width {width} has ranks from 1 to {min(length, width)}: give one "
          "of them.")
