"""The original's multi-task prompts: a shared prompt and one for each task.

The two are added, stand one behind the other, share the width, or the task's
is an affine map of the shared one. Every example's task is its first token:

    PROMPT = @multitask.FirstTokenTask
    multitask.FirstTokenTask.prompt = @multitask_prompts.AddMultiTaskPrompt()

`methods.multitask` has that door, and PEFT's multitask prompt, whose tasks are
low-rank factors instead.
"""

from collections.abc import Callable

import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from prompt_tuning import errors, prompts

Array = jax.Array
Initializer = Callable[..., Array]


def add_shared_and_tasks(shared: Array, tasks: Array) -> Array:
  """Shared [P, H] and tasks [B, P * H] -> their sums [B, P, H]."""
  return shared + tasks.reshape(-1, *shared.shape)


def concat_shared_and_tasks(shared: Array, tasks: Array) -> Array:
  """Shared [P, H], then tasks [B, Pt * H] -> [B, P + Pt, H]."""
  tasks = tasks.reshape(len(tasks), -1, shared.shape[1])
  return jnp.concatenate([prompts.expand_to_batch(shared, tasks), tasks], 1)


def concat_features_shared_and_tasks(shared: Array, tasks: Array) -> Array:
  """Shared [P, Hs] beside tasks [B, P * Ht] -> [B, P, Hs + Ht]."""
  tasks = tasks.reshape(len(tasks), len(shared), -1)
  return jnp.concatenate([prompts.expand_to_batch(shared, tasks), tasks], 2)


def project_shared_with_tasks(shared: Array, tasks: Array) -> Array:
  """Each task's affine map of the shared prompt.

  Args:
    shared: [P, Hs].
    tasks: [B, H * Hs + H]: kernels [H, Hs], then biases [H].

  Returns:
    [B, P, H].
  """
  width = tasks.shape[1] // (shared.shape[1] + 1)
  kernels, biases = jnp.split(tasks, [width * shared.shape[1]], axis=1)
  kernels = kernels.reshape(len(tasks), width, -1)  # [B, H, Hs]
  return jnp.einsum("ps,bhs->bph", shared, kernels) + biases[:, None]


class _TaskPrompts(nn.Module):
  """The parameter `embedding` [tasks, size]; indices [...] -> [..., size]."""

  num_tasks: int
  size: int
  tasks_init: Initializer

  @nn.compact
  def __call__(self, task_ids: Array) -> Array:
    table = partitioning.param_with_axes(
        "embedding", self.tasks_init, (self.num_tasks, self.size),
        jnp.float32, axes=("tasks", "prompt_embed"))
    return jnp.take(table, task_ids, axis=0)


class AddMultiTaskPrompt(nn.Module):
  """The sum of the shared prompt and the task's.

  Parameters `shared_prompt` [P, Hs] and `task_prompts/embedding`
  [tasks, size]; the other ways to combine are subclasses.

  Attributes:
    length: P of the shared prompt.
    num_tasks: how many tasks share it.
    task: the task of every example of a call without `task_ids`.
    shared_init: of the shared prompt.
    tasks_init: of the tasks' prompts.
    dtype: of the prompt; parameters are float32.
  """

  length: int
  num_tasks: int
  task: int = 0
  shared_init: Initializer = nn.initializers.uniform()
  tasks_init: Initializer = nn.initializers.uniform()
  dtype: jnp.dtype = jnp.float32

  def shared_width(self, width: int) -> int:
    """Hs, from the model's H."""
    return width

  def task_size(self, width: int) -> int:
    """Numbers of one task, from the model's H."""
    return self.length * width

  def combine(self, shared: Array, tasks: Array) -> Array:
    """Shared [P, Hs] and tasks [B, size] -> [B, P, H]."""
    return add_shared_and_tasks(shared, tasks)

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
        "shared_prompt", self.shared_init,
        (self.length, self.shared_width(width)), jnp.float32,
        axes=("prompt", "prompt_embed"))
    one = jnp.asarray([self.task]) if task_ids is None else task_ids
    tasks = _TaskPrompts(
        self.num_tasks, self.task_size(width), self.tasks_init,
        name="task_prompts")(one)
    prompt = self.combine(shared, tasks).astype(self.dtype)
    return prompt[0] if task_ids is None else prompt


class ConcatMultiTaskPrompt(AddMultiTaskPrompt):
  """The shared prompt, then the task's: P + Pt positions.

  Attributes:
    task_length: Pt; P if None.
  """

  task_length: int | None = None

  def task_size(self, width: int) -> int:
    """See `AddMultiTaskPrompt`."""
    return (self.task_length or self.length) * width

  def combine(self, shared: Array, tasks: Array) -> Array:
    """See `AddMultiTaskPrompt`."""
    return concat_shared_and_tasks(shared, tasks)


class ConcatFeaturesMultiTaskPrompt(AddMultiTaskPrompt):
  """Of each position's H numbers, the first are shared, the others the task's.

  Attributes:
    shared_features: Hs, from 1 to H - 1; the tasks have the rest.
  """

  shared_features: int | None = None

  def shared_width(self, width: int) -> int:
    """See `AddMultiTaskPrompt`."""
    if not self.shared_features or not 0 < self.shared_features < width:
      raise errors.UserError(
          "ConcatFeaturesMultiTaskPrompt.shared_features is "
          f"{self.shared_features}: give how many of the model's {width} "
          f"features the tasks share, 1 to {width - 1}.")
    return self.shared_features

  def task_size(self, width: int) -> int:
    """See `AddMultiTaskPrompt`."""
    return self.length * (width - self.shared_width(width))

  def combine(self, shared: Array, tasks: Array) -> Array:
    """See `AddMultiTaskPrompt`."""
    return concat_features_shared_and_tasks(shared, tasks)


class ProjectMultiTaskPrompt(AddMultiTaskPrompt):
  """Each task has an affine map from the shared prompt to its own.

  Attributes:
    shared_features: Hs; H if None.
  """

  shared_features: int | None = None

  def shared_width(self, width: int) -> int:
    """See `AddMultiTaskPrompt`."""
    return self.shared_features or width

  def task_size(self, width: int) -> int:
    """See `AddMultiTaskPrompt`."""
    return (self.shared_width(width) + 1) * width

  def combine(self, shared: Array, tasks: Array) -> Array:
    """See `AddMultiTaskPrompt`."""
    return project_shared_with_tasks(shared, tasks)
