"""Multitask prompt tuning: one prompt for all tasks, a factor for each.

Wang et al. 2023 (arXiv 2303.02861): the prompt of task t is the elementwise
product of a shared [P, H] and of `cols[t] @ rows[t]`, of rank R.

    train_prompts.Prompt.prompt = @multitask.MultitaskPrompt()

uses one task for every example; `FirstTokenTask` in the place of
`train_prompts.Prompt` takes each example's task from its first token, as the
original's multitask prompts do, and so trains all tasks together.
"""

from collections.abc import Callable

import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from prompt_tuning.train import prompts as train_prompts

Array = jax.Array
Initializer = Callable[..., Array]


def task_prompts(shared: Array, cols: Array, rows: Array) -> Array:
  """The prompts of some tasks.

  Args:
    shared: [P, H].
    cols: [..., P, R].
    rows: [..., R, H].

  Returns:
    [..., P, H].
  """
  return shared * jnp.einsum("...pr,...rh->...ph", cols, rows)


class MultitaskPrompt(nn.Module):
  """Parameters `prompt` [P, H], `cols` [tasks, P, R], `rows` [tasks, R, H].

  Attributes:
    length: P.
    num_tasks: how many tasks share the prompt.
    num_ranks: R.
    task: the task of every example of a call without `task_ids`.
    prompt_init: of the shared prompt; PEFT's N(0, 1).
    factor_init: of cols and rows; PEFT's N(0, 0.02^2).
    dtype: of the prompt; parameters are float32.
  """

  length: int
  num_tasks: int
  num_ranks: int = 1
  task: int = 0
  prompt_init: Initializer = nn.initializers.normal(1.0)
  factor_init: Initializer = nn.initializers.normal(0.02)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
      self, x: Array, x_embed: Array, task_ids: Array | None = None
  ) -> Array:
    """The prompt of one task, or of each example's.

    Args:
      x: [B, T] tokens.
      x_embed: [B, T, H] their embeddings.
      task_ids: [B], each in [0, num_tasks).

    Returns:
      [P, H], or [B, P, H] with `task_ids`.
    """
    del x
    width = x_embed.shape[-1]
    shared = partitioning.param_with_axes(
        "prompt", self.prompt_init, (self.length, width), jnp.float32,
        axes=("prompt", "prompt_embed"))
    cols = partitioning.param_with_axes(
        "cols", self.factor_init,
        (self.num_tasks, self.length, self.num_ranks), jnp.float32,
        axes=("tasks", "prompt", "prompt_rank"))
    rows = partitioning.param_with_axes(
        "rows", self.factor_init, (self.num_tasks, self.num_ranks, width),
        jnp.float32, axes=("tasks", "prompt_rank", "prompt_embed"))
    task = self.task if task_ids is None else task_ids
    prompt = task_prompts(
        shared, jnp.take(cols, task, axis=0), jnp.take(rows, task, axis=0))
    return prompt.astype(self.dtype)


class FirstTokenTask(nn.Module):
  """Takes the task off the front of each example and puts its prompt in place.

  The output is one shorter than the sum of prompt and tokens: what the model
  counts as the first token is the prompt's last position, so masks and
  positions stay right.

  Attributes:
    prompt: a `MultitaskPrompt`, or what is called like one.
    first_id: the token that stands for task 0, the next for task 1, ….
    combine: see `train.prompts`.
  """

  prompt: nn.Module
  first_id: int = 1
  combine: Callable[[Array, Array, Array], Array] = train_prompts.prefix_prompt

  def __call__(self, x: Array, x_embed: Array) -> Array:
    """Tokens [B, T], embeddings [B, T, H] -> [B, P + T - 1, H]."""
    task_ids = x[:, 0] - self.first_id
    prompt = self.prompt(x, x_embed, task_ids).astype(x_embed.dtype)
    return self.combine(prompt, x_embed[:, 1:], x[:, 1:])
