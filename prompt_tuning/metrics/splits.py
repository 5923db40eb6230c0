"""Scores of parts of a test set, such as WebNLG's unseen categories."""

from collections.abc import Sequence
from typing import Any

from prompt_tuning.data import tasks


def by_split(
    metric_fn: tasks.MetricFn,
    targets: Sequence[Any],
    predictions: Sequence[Any],
    splits: Sequence[str],
) -> dict[str, dict[str, Any]]:
  """A metric over everything, and over each split by itself.

  Args:
    metric_fn: a function of targets and predictions.
    targets: N of them.
    predictions: N.
    splits: N names of the splits that they are in.

  Returns:
    "all" and the names of splits, in order, with the metric's values.
  """
  rows = list(zip(targets, predictions, splits, strict=True))
  parts = {"all": rows} | {
      name: [row for row in rows if row[2] == name]
      for name in sorted(set(splits))}
  return {
      name: dict(metric_fn([row[0] for row in part], [row[1] for row in part]))
      for name, part in parts.items()}
