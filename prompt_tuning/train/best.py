"""The best state of a run, by one metric of its evaluations, in `best/`."""

from collections.abc import Mapping
import math
import os

from prompt_tuning import errors
from prompt_tuning.checkpoints import runs

FOLDER = "best"

# Metrics of which less is better; of all others more is.
_LOWER = frozenset({"loss", "perplexity", "ter", "ter_webnlg"})


class Best:
  """Says which evaluation is the best so far, and holds its checkpoint.

  `best/` is a folder as a run's own: checkpoints, prompts, adapters.

  Attributes:
    folder: where it lies.
    checkpoints: that folder's; None if no metric is watched.
    value: of the best evaluation so far; None before the first.
  """

  def __init__(
      self, model_dir: str, metric: str | None, value: float | None = None):
    """Begins, or goes on.

    Args:
      model_dir: the run's folder.
      metric: `{task}/{metric}` of the evaluations, or the metric alone for the
        mean over tasks; None watches nothing.
      value: see the class; of the run that goes on.
    """
    self._metric, self.value = metric, value
    self.folder = os.path.join(model_dir, FOLDER)
    self.checkpoints = runs.RunCheckpoints(self.folder) if metric else None

  def __enter__(self) -> "Best":
    return self

  def __exit__(self, *exception) -> None:
    if self.checkpoints is not None:
      self.checkpoints.close()

  def improves(self, results: Mapping[str, float]) -> bool:
    """Whether these are the best results so far; remembers them if so.

    Args:
      results: of an evaluation, by `{task}/{metric}`.

    Raises:
      UserError: if the metric is not among them.
    """
    if self._metric is None:
      return False
    found = [value for name, value in results.items()
             if self._metric in (name, name.rpartition("/")[2])]
    if not found:
      raise errors.UserError(
          f"KEEP_BEST is {self._metric!r}, which no evaluation gives: choose "
          f"one of {', '.join(sorted(results)) or 'none at all'}.")
    value = sum(found) / len(found)
    lower = self._metric.rpartition("/")[2] in _LOWER
    if math.isnan(value) or self.value is not None and (
        value >= self.value if lower else value <= self.value):
      return False
    self.value = value
    return True
