"""Averages of a training run's metrics: for the log, and for each evaluation.
"""

from collections.abc import Mapping
from typing import Any

from prompt_tuning.metrics import perplexity


class Averages:
  """What steps sum up to, until the averages are taken."""

  def __init__(self, state: Mapping[str, Any] | None = None):
    """Starts from nothing, or from what another one's `state` was."""
    self._sums = dict(state["sums"]) if state else {}
    self._steps = state["steps"] if state else 0

  def state(self) -> dict[str, Any]:
    """The sums, as JSON."""
    return {"sums": dict(self._sums), "steps": self._steps}

  def add(self, metrics: Mapping[str, float]) -> None:
    """Adds one step's sums over its batch, and its `gradient_norm`."""
    for name, value in metrics.items():
      self._sums[name] = self._sums.get(name, 0.0) + value
    self._steps += 1

  def take(self) -> dict[str, float]:
    """Averages since the last time, a target token or a step; {} of none."""
    if not self._steps:
      return {}
    sums, steps = self._sums, self._steps
    self._sums, self._steps = {}, 0
    return a_token(sums) | {"gradient_norm": sums["gradient_norm"] / steps}


def a_token(sums: Mapping[str, float]) -> dict[str, float]:
  """What `LanguageModel.loss` sums up, a target token.

  Args:
    sums: over batches; without `z_loss` the loss is no cross-entropy, whose
      exponential is a perplexity.

  Returns:
    `loss`, `token_accuracy` in percent and, of cross-entropies, `perplexity`
    and `z_loss`.
  """
  tokens = max(sums["tokens"], 1.0)
  found = {"loss": sums["loss"] / tokens}
  if "z_loss" in sums:
    found |= {
        "perplexity": perplexity.perplexity(
            sums["loss"] - sums["z_loss"], tokens),
        "z_loss": sums["z_loss"] / tokens}
  return found | {"token_accuracy": 100.0 * sums["correct"] / tokens}


class Meter:
  """Averages metrics over `period` steps without waiting for the device.

  A step's numbers are read only after the next step was dispatched, so the
  device never idles for the log. What no line of the log holds yet goes into
  the checkpoint: a resumed run logs what an unbroken one does.
  """

  def __init__(self, reporter, period: int, unlogged: dict | None = None):
    """Starts a run, or goes on with the `unlogged` sums of an earlier one."""
    self.count = 0
    self.last_step = 0
    self._reporter = reporter
    self._period = period
    self._pending: list[tuple[int, Any]] = []
    self.bad = 0
    self._logged = Averages(unlogged)
    self._evaluated = Averages((unlogged or {}).get("evaluated"))

  def unlogged(self) -> dict:
    """The sums since the last line, to give to the next `Meter`."""
    self._read_pending()
    return {**self._logged.state(), "evaluated": self._evaluated.state()}

  def add(self, step: int, metrics) -> int:
    """Takes one step's metrics; gives how many steps in a row were bad."""
    self.count += 1
    self._pending.append((step, metrics))
    if len(self._pending) > 1:
      self.read(*self._pending.pop(0))
    return self.bad

  def read(self, step: int, metrics) -> dict[str, float]:
    """Takes one step's metrics now; gives the averages that it logs, if any.

    It waits if the device has not computed them yet.
    """
    metrics = {name: float(value) for name, value in metrics.items()}
    finite = bool(metrics.pop("is_finite"))
    self.bad = 0 if finite else self.bad + 1
    self.last_step = step
    if not finite:
      self._reporter.note(
          f"Step {step} was skipped: its loss or gradient is not finite.")
      return {}
    self._logged.add(metrics)
    self._evaluated.add(metrics)
    return self._log(step) if step % self._period == 0 else {}

  def flush(self) -> dict[str, float]:
    """Logs a part of a period; gives the averages since the last flush."""
    self._read_pending()
    self._log(self.last_step)
    return self._evaluated.take()

  def _read_pending(self):
    while self._pending:
      self.read(*self._pending.pop(0))

  def _log(self, step):
    averages = self._logged.take()
    if averages:
      self._reporter.train(step, averages)
    return averages
