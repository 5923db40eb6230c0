"""How prompts do on tasks that they were not trained on, as a table.

Lester et al. 2021 (arXiv 2104.08691), section 5: a frozen network and a prompt
overfit a domain less than a network that was trained. A row is a metric of a
task, a column is what was evaluated: mean and standard deviation over runs.
"""

from collections.abc import Mapping, Sequence
import os
import statistics

from prompt_tuning import errors
from prompt_tuning.train import reporting


def results(folder: str | os.PathLike) -> dict[str, float]:
  """The metrics of the last evaluation in a folder, by "task metric".

  Args:
    folder: EVAL_OUTPUT_DIR of `prompt_tuning.eval`, MODEL_DIR of a training, or
      a prompt's folder of `transfer.ensemble`.

  Raises:
    UserError: if nothing was evaluated there.
  """
  found = {name: points[-1][1]
           for name, points in reporting.metric_series(folder).items()}
  if not found:
    raise errors.UserError(
        f"{os.fspath(folder)} has no evaluation (inference_eval/"
        f"*{reporting.METRICS_SUFFIX}): name the EVAL_OUTPUT_DIR of an eval.")
  return found


def table(
    sources: Mapping[str, Sequence[str | os.PathLike]],
) -> list[dict[str, str]]:
  """One record a metric of a task, with a column a source.

  Args:
    sources: the folders of each source's runs, by the source's name. All runs
      of a source must have been evaluated alike; a task that another source
      lacks has an empty cell there.

  Returns:
    Records for `train.comparison.markdown`.

  Raises:
    UserError: if a run lacks a result that another of its source has.
  """
  found = {name: _gathered(folders) for name, folders in sources.items()}
  rows = dict.fromkeys(row for of_source in found.values() for row in of_source)
  return [
      {"task": row} | {
          name: spread(of_source[row]) if row in of_source else ""
          for name, of_source in found.items()}
      for row in rows]


def spread(values: Sequence[float]) -> str:
  """`94.8 ± 0.1`: the mean, and of several the sample standard deviation."""
  mean = f"{statistics.fmean(values):.1f}"
  return mean if len(values) < 2 else (
      f"{mean} ± {statistics.stdev(values):.1f}")


def _gathered(folders: Sequence[str | os.PathLike]) -> dict[str, list[float]]:
  """The values of all folders by "task metric"."""
  runs = [results(folder) for folder in folders]
  every = dict.fromkeys(row for run in runs for row in run)
  for folder, run in zip(folders, runs):
    if missing := [row for row in every if row not in run]:
      raise errors.UserError(
          f"{os.fspath(folder)} has no result of {missing[0]!r}, and others of "
          "its source have: evaluate it on the same tasks.")
  return {row: [run[row] for run in runs] for row in every}
