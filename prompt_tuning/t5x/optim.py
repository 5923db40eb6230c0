"""Optimizers of T5X that train some of the parameters.

`t5x.optimizers.MultiOptimizer` keeps the state None for every frozen
parameter, which T5X's orbax checkpoints write but cannot read back: such a run
does not resume. Here frozen parameters have no state at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax
import gin
from t5x import adafactor, optimizers

from prompt_tuning.train import sharding
from prompt_tuning.train import state as state_lib

# By the name that command lines bind, which would otherwise be ambiguous: our
# own engine's is `prompt_tuning.train.adafactor.Adafactor`.
gin.external_configurable(adafactor.Adafactor, module="adafactor")


def standard_logical_factor_rules(rules: Mapping[str, Any] | None = None):
  """T5X's rules for Adafactor, and those of the axes that we train.

  Args:
    rules: to add to; T5X's own if None.

  Returns:
    A frozen dict of `adafactor.FactorDim` by axis.
  """
  rules = adafactor.standard_logical_factor_rules() if rules is None else rules
  ours = dict.fromkeys(sharding.TRAINED_AXES, adafactor.FactorDim.NONE)
  return flax.core.freeze({
      **flax.core.unfreeze(rules), **ours,
      "batch": adafactor.FactorDim.BATCH})


class Trainable(optimizers.OptimizerDef):
  """Trains what patterns match; all else stays as it is, and has no state."""

  def __init__(
      self, optimizer: optimizers.OptimizerDef, patterns: Sequence[str]):
    """Wraps an optimizer.

    Args:
      optimizer: for the parameters that are trained.
      patterns: regular expressions of whole paths; see `state.split`, which
        refuses one that matches nothing.
    """
    super().__init__(optimizer.hyper_params)
    self.optimizer = optimizer
    self.patterns = tuple(patterns)

  def init_state(self, params):
    return self.optimizer.init_state(self._trained(params))

  def apply_gradient(self, hyper_params, params, state, grads):
    trained, state = self.optimizer.apply_gradient(
        hyper_params, self._trained(params), state, self._trained(grads))
    return _with(params, trained), state

  def set_param_axes(self, param_logical_axes):
    """Tells the optimizer the axes of what it trains."""
    if hasattr(self.optimizer, "set_param_axes"):
      self.optimizer.set_param_axes(self._trained(param_logical_axes))

  def derive_logical_axes(self, optimizer, param_logical_axes):
    """The axes of the state, and of all parameters."""
    trained = self._trained(param_logical_axes)
    inner = optimizers.Optimizer(
        self.optimizer, optimizer.state, self._trained(optimizer.target))
    derived = self.optimizer.derive_logical_axes(inner, trained)
    return optimizers.Optimizer(
        optimizer.optimizer_def, derived.state, param_logical_axes)

  def _trained(self, tree):
    trained, _ = state_lib.split(flax.core.unfreeze(tree), self.patterns)
    return flax.core.freeze(trained)


def _with(params, trained):
  """`params` with the trained ones replaced, frozen if it was."""
  merged = state_lib.merge(
      flax.core.unfreeze(trained), flax.core.unfreeze(params))
  return (flax.core.freeze(merged)
          if isinstance(params, flax.core.FrozenDict) else merged)
