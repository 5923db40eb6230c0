"""How far the members of a sweep have come: logs, averages, evaluations."""

from collections.abc import Callable
import contextlib
import os
from typing import Any

import jax
import numpy as np

from prompt_tuning.train import comparison, exporting, loop, meter


class Progress:
  """What the members have come to: their logs, averages and evaluations.

  Attributes:
    is_running: [K] False for members that stay as they are.
  """

  def __init__(
      self, together, evaluators, reporter, model_dir, log_period, earlier,
  ):
    self._members = together
    self._evaluators = evaluators
    self._reporter = reporter
    self._dir = model_dir
    self._folders = {
        one.name: os.path.join(model_dir, one.name) for one in together}
    self._pending: list[tuple[int, Any]] = []
    earlier = earlier or {}
    self._results = earlier.get("results", [{} for _ in together])
    self._stopped = earlier.get("stopped", {})  # JSON has no int keys
    self._unlogged = earlier.get("unlogged", [None for _ in together])
    self._log_period = log_period
    self._take = jax.jit(
        lambda tree, k: jax.tree.map(lambda leaf: leaf[k], tree))

  @property
  def is_running(self) -> np.ndarray:
    return np.array([one.name not in self._stopped for one in self._members])

  def __enter__(self):
    self._opened = contextlib.ExitStack()
    self._reporters = [
        self._opened.enter_context(self._reporter.part(folder, name))
        for name, folder in self._folders.items()]
    self._meters = [
        meter.Meter(reporter, self._log_period, unlogged)
        for reporter, unlogged in zip(self._reporters, self._unlogged)]
    return self

  def __exit__(self, *unused):
    self._opened.close()

  def add(self, step: int, metrics):
    """Takes the [K] metrics of a step; reads those of the step before."""
    self._pending.append((step, metrics))
    if len(self._pending) > 1:
      self._read(*self._pending.pop(0))

  def _read(self, step, metrics):
    metrics = jax.device_get(metrics)
    logged = []
    for k, one in enumerate(self._members):
      if one.name in self._stopped:
        continue
      averages = self._meters[k].read(
          step, {name: values[k] for name, values in metrics.items()})
      if averages:
        logged.append(averages["loss"])
      if self._meters[k].bad >= loop.MAX_BAD_STEPS:
        self._stopped[one.name] = step - loop.MAX_BAD_STEPS
        self._reporters[k].note(
            f"The loss was not finite at {loop.MAX_BAD_STEPS} steps in a row "
            f"up to step {step}: it stays as it was before them.")
    if logged:
      self._reporter.train(step, {"loss": float(np.mean(logged))})

  def _read_pending(self):
    while self._pending:
      self._read(*self._pending.pop(0))

  def state(self) -> dict[str, Any]:
    """What to give to the next `Progress`, as JSON."""
    self._read_pending()
    return {"results": self._results, "stopped": self._stopped,
            "unlogged": [one.unlogged() for one in self._meters]}

  def evaluate(self, step: int, trainable, frozen):
    """Evaluates each member; draws the curves."""
    self._read_pending()
    for k, evaluator in enumerate(self._evaluators):
      averages = self._meters[k].flush()
      results = evaluator.run(
          step, self._take(trainable, k), frozen, self._reporters[k])
      self._results[k] = self._results[k] | results
      if averages:
        self._results[k] |= {"training loss": averages["loss"]}
    comparison.draw(self._dir, self._folders)

  def writer(
      self, step: int, trainable, weights, total_steps: int
  ) -> Callable[[], None]:
    """Writes what each member trained, see `exporting.writer`."""
    writers = []
    for k, one in enumerate(self._members):
      results = {name: value for name, value in self._results[k].items()
                 if name != "training loss"}
      writers.append(exporting.writer(
          self._folders[one.name], step, one.model, self._take(trainable, k),
          weights, one.train, results,
          {"total_steps": total_steps, **one.settings}))

    def write():
      for one in writers:
        one()

    return write

  def records(self) -> list[dict[str, Any]]:
    """See `sweep.train_members`."""
    found = []
    for one, results in zip(self._members, self._results):
      record = {"member": one.name, **one.settings,
                "training loss": results.get("training loss"), **results}
      if one.name in self._stopped:
        record["stopped at"] = self._stopped[one.name]
      found.append(record)
    return found
