"""A run counted in epochs: gin files say epochs, the engine counts steps.

An epoch is the number of batches that hold every example once, the last one
filled up with examples of the next epoch: 50 examples in batches of 8 are 7
steps. That is how many steps Hugging Face's trainers count.
"""

import math

from prompt_tuning import errors
from prompt_tuning.train import inputs, settings


def steps(
    epochs: int, dataset: settings.DatasetConfig, initial_step: int = 0
) -> int:
  """The steps of some epochs; reads the examples once to count them.

  Args:
    epochs: how many.
    dataset: the training data; of a mixture, the tasks with a rate above 0.
    initial_step: what the base checkpoint counts already, which TRAIN_STEPS
      includes (see `configs/runs/prompt_finetune.gin`).

  Raises:
    UserError: less than one epoch, or a task without that split.
  """
  settings.check_positive("epochs.steps.epochs", epochs)
  count = 0
  for task, rate in inputs.members(dataset):
    if dataset.split not in task.splits:
      raise errors.UserError(
          f"the task {task.name} has no split {dataset.split!r}, whose epochs "
          f"are to be counted; it has {', '.join(task.splits)}")
    if rate > 0:
      count += sum(1 for _ in task.examples(dataset.split))
  return initial_step + epochs * steps_an_epoch(count, dataset.batch_size)


def steps_an_epoch(examples: int, batch_size: int) -> int:
  """How many batches hold every example once; at least 1."""
  return max(math.ceil(examples / batch_size), 1)
