"""Multitask prompt tuning: one prompt for all tasks, a factor for each.

`FirstTokenTask`, which takes each example's task from its first token, is also
the door of the prompts in `multitask_prompts`.

Wang et al. 2023 (arXiv 2303.02861): the prompt of task t is the elementwise
product of a shared [P, H] and of `cols[t] @ rows[t]`, of rank R.

    train_prompts.Prompt.prompt = @multitask.MultitaskPrompt()

uses one task for every example; `FirstTokenTask` in the place of
`train_prompts.Prompt` takes each example's task from its first token, as the
original's multitask prompts do, and so trains all tasks together.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import errors
from prompt_tuning.models import t5
from prompt_tuning.train import prompts as train_prompts

Array = jax.Array
Initializer = Callable[..., Array]


def identity(tokens: Array) -> Array:
  """The token is the task's index."""
  return tokens


def from_first_id(tokens: Array, first_id: int = 1) -> Array:
  """`first_id` is task 0, the next token task 1, …."""
  return tokens - first_id


def sentinel_to_task(tokens: Array, vocab_size: int) -> Array:
  """T5's `<extra_id_0>`, the last of `vocab_size` ids, is task 0, …."""
  return vocab_size - 1 - tokens


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

  An index out of range makes the output NaN, so that no training goes on with
  it; `check_examples` finds it before that.

  Attributes:
    prompt: a `MultitaskPrompt`, or what is called like one and has its
      `num_tasks`.
    to_task_idx: the first tokens [B] -> indices of tasks [B], such as
      `from_first_id` and `sentinel_to_task`.
    combine: see `train.prompts`.
  """

  prompt: nn.Module
  to_task_idx: Callable[[Array], Array] = from_first_id
  combine: Callable[[Array, Array, Array], Array] = train_prompts.prefix_prompt

  def __call__(self, x: Array, x_embed: Array) -> Array:
    """Tokens [B, T], embeddings [B, T, H] -> [B, P + T - 1, H]."""
    task_ids = self.to_task_idx(x[:, 0])
    # `jnp.take` counts negative indices from the end.
    task_ids = jnp.where(task_ids < 0, self.prompt.num_tasks, task_ids)
    prompt = self.prompt(x, x_embed, task_ids).astype(x_embed.dtype)
    return self.combine(prompt, x_embed[:, 1:], x[:, 1:])


def check_examples(module: nn.Module, examples: Any) -> None:
  """Refuses examples whose first token is no task of the module's prompt.

  Args:
    module: a `causal_lm.CausalLM` or `t5.EncoderDecoder`; with another kind of
      prompt, or none, there is nothing to check.
    examples: `token_ids.Examples`.

  Raises:
    UserError: naming the first such example.
  """
  factory = getattr(module, "prompt_factory", None)
  door = factory() if factory is not None else None
  if not isinstance(door, FirstTokenTask) or not len(examples):
    return
  starts = examples.arrays["inputs_offsets"][:-1]
  is_empty = examples.lengths("inputs") == 0
  tokens = np.append(examples.arrays["inputs"], 0)[starts]
  tasks = np.asarray(door.to_task_idx(tokens.astype(np.int64)))
  count = door.prompt.num_tasks
  # In whose place the prompt's last position stands must not be padding.
  is_padding = (tokens == 0) & isinstance(module, t5.EncoderDecoder)
  wrong = np.flatnonzero(
      is_empty | is_padding | (tasks < 0) | (tasks >= count))
  if not len(wrong):
    return
  first = wrong[0]
  what = ("no token" if is_empty[first] else
          "0 for its first token, which is T5's padding"
          if is_padding[first] else
          f"the first token {tokens[first]}, which is task {tasks[first]}")
  raise errors.UserError(
      f"Example {first} of {examples.task_name} ({examples.split}) has {what}, "
      f"but the prompt has tasks 0 to {count - 1}: begin the inputs with the "
      "token of their task, or give the prompt more tasks.")
