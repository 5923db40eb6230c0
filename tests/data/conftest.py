"""What tests of published tasks share."""

import pytest

from prompt_tuning.data import tasks, text_tasks


@pytest.fixture(scope="session")
def made():
  """A function: the examples that a task makes of rows, nothing downloaded."""
  def examples(name, *rows):
    steps = text_tasks.steps_of(tasks.get_task(name))
    return list(text_tasks.run(steps, iter(rows)))

  return examples


@pytest.fixture(scope="session")
def pair(made):
  """A function: inputs and targets of the only example of a row."""
  def texts(name, row):
    (example,) = made(name, row)
    return example["inputs"], example["targets"]

  return texts
