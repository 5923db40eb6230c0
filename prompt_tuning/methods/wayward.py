"""Wayward prompts: trained for a task, kept near to what a text embeds to.

    loss + gamma / P * |prompt - discrete prompt|^2

Khashabi et al. 2022 (arXiv 2112.08348) show that a prompt can solve its task
and still read as any text; the prompt starts from that text.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning import errors
from prompt_tuning.models import encoder_decoder
from prompt_tuning.train import state as state_lib

Array = jax.Array


def task_text(
    text: str, values: Sequence[Any] | Mapping[str, Any] | None = None
) -> str:
  """`text` with its `{}` or `{name}` filled from `values`, if there are any."""
  if values is None:
    return text
  try:
    if isinstance(values, Mapping):
      return text.format(**values)
    return text.format(*values)
  except (KeyError, IndexError) as error:
    raise errors.UserError(
        f"TASK_STRING has a place that VERBALIZERS = {values!r} does not "
        f"fill: {error}.") from error


def count_pieces(text: str, vocab: Any) -> int:
  """How many pieces of the vocabulary a text has: the prompt's length."""
  return len(vocab.encode(text))


def execute_initializer(
    init: Callable[..., Array], rng: Array | None, shape: Sequence[int]
) -> Array:
  """What an initialiser gives outside of a module."""
  return init(rng, tuple(shape))


def squared_l2_distance(x: Array, y: Array) -> Array:
  """Two prompts [P, H] -> the mean over positions of |x_p - y_p|^2."""
  return jnp.sum(jnp.square(x - y)) / len(x)


@dataclasses.dataclass(frozen=True)
class WaywardPromptEncoderDecoderModel(encoder_decoder.EncoderDecoderModel):
  """A model whose loss holds a prompt near to a discrete one.

  The distance counts once a step, whatever `loss_normalizing_factor` and the
  number of microbatches. The metrics are without it.

  Attributes:
    gamma: weight of the distance.
    discrete_prompt: [P, H].
    prompt_path: of the prompt that is held.
    distance: of two prompts.
    num_microbatches: the run's, NUM_MICROBATCHES.
    others: see `EncoderDecoderModel`.
  """

  gamma: float = 0.01
  discrete_prompt: Any = dataclasses.field(default=None, compare=False)
  prompt_path: str = "encoder/prompt/prompt/prompt"
  distance: Callable[[Array, Array], Array] = squared_l2_distance
  num_microbatches: int = 1

  def loss(
      self, params: Any, batch: Mapping[str, Array],
      dropout_rng: Array | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """See `LanguageModel.loss`."""
    total, sums = super().loss(params, batch, dropout_rng)
    prompt = state_lib.flatten(params).get(self.prompt_path)
    shape = jnp.shape(self.discrete_prompt)
    if prompt is None or prompt.shape != shape:
      found = "no such parameter" if prompt is None else f"of {prompt.shape}"
      raise errors.UserError(
          f"The wayward prompt {self.prompt_path} is {found}, the discrete "
          f"prompt of {shape}: give prompt_path and discrete_prompt of one "
          "shape (the pieces of TASK_STRING are PROMPT_LENGTH).")
    # The engine divides what it is given by the factor.
    if self.loss_normalizing_factor == "num_tokens":
      weight = sums["tokens"]
    else:
      weight = (self.loss_normalizing_factor or 1.0) / self.num_microbatches
    return total + self.gamma * weight * self.distance(
        prompt, self.discrete_prompt), sums
