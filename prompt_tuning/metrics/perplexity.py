"""Perplexity of a language model."""

import math

# exp of more is above the largest double.
_MOST = 709.0


def perplexity(loss: float, tokens: float) -> float:
  """How many equally likely tokens the model wavers between, on average.

  Args:
    loss: the sum of cross entropies of tokens, in nats.
    tokens: how many.

  Returns:
    exp(loss / tokens); infinity beyond the numbers, NaN for NaN.
  """
  mean = loss / tokens
  return math.inf if mean > _MOST else math.exp(mean)
