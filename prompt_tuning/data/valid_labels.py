"""The texts that a task's targets can be, beside each example's own target.

For models that weigh labels against each other (`models.valid_labels`): batches
then have these int32 arrays as well, where C is how many labels there are.

    label_tokens [B, C, U]   each label's ids
    label_weights [B, C, U]  1 on them, 0 on padding
    label_index [B]          which label is the target; -1: none of them
"""

from collections.abc import Mapping, Sequence

import numpy as np

from prompt_tuning import errors
from prompt_tuning.data import features, tasks, token_ids, vocabularies


def ids_of(
    task: tasks.Task, vocabulary: vocabularies.Vocabulary,
    lengths: Mapping[str, int],
) -> tuple[tuple[int, ...], ...]:
  """The ids of a task's labels, as its targets are tokenised.

  Args:
    task: has `label_texts`.
    vocabulary: of the targets.
    lengths: most ids of "targets".

  Raises:
    UserError: the task has no labels, or they are too long or the same.
  """
  if not task.label_texts:
    raise errors.UserError(
        f"the model weighs labels against each other, but the task {task.name} "
        "does not say which there are: take a task named …_perceptron, or one "
        "of files with RANK_LABELS = True")
  found = tuple(
      tuple(features.sequence_ids(
          text, vocabulary, "targets" not in task.without_eos))
      for text in task.label_texts)
  if len(set(found)) < len(found):
    raise errors.UserError(
        f"two labels of the task {task.name} are the same tokens: "
        f"{', '.join(map(repr, task.label_texts))}; give other texts")
  longest = max(map(len, found))
  if longest > lengths["targets"]:
    raise errors.UserError(
        f"a label of the task {task.name} has {longest} tokens, but "
        f"TASK_FEATURE_LENGTHS['targets'] is {lengths['targets']}; raise it")
  return found


def check_targets(examples: token_ids.Examples) -> None:
  """Refuses to train on examples whose target is no label.

  Raises:
    UserError: naming the first such example.
  """
  known = set(examples.labels)
  for index in range(len(examples)):
    if tuple(examples.ids("targets", index).tolist()) not in known:
      raise errors.UserError(
          f"example {index} of {examples.task_name} ({examples.split}) has a "
          f"target that is no label of the task: "
          f"{examples.original(index)['targets']!r}; leave it out, or give "
          "the task this label")


def batch_features(
    found: Sequence[tuple[token_ids.Examples, int]], length: int,
    most_labels: int,
) -> dict[str, np.ndarray]:
  """The arrays of a batch, see above; none for tasks without labels.

  Args:
    found: the examples of the batch, and which of them.
    length: U.
    most_labels: C; tasks with fewer have labels without tokens.
  """
  if not most_labels:
    return {}
  tokens = np.full(
      (len(found), most_labels, length), vocabularies.PAD_ID, np.int32)
  weights = np.zeros_like(tokens)
  index = np.full(len(found), -1, np.int32)
  for row, (examples, number) in enumerate(found):
    target = tuple(examples.ids("targets", number).tolist())
    for place, ids in enumerate(examples.labels):
      tokens[row, place, :len(ids)] = ids
      weights[row, place, :len(ids)] = 1
      if ids == target:
        index[row] = place
  return {"label_tokens": tokens, "label_weights": weights,
          "label_index": index}
