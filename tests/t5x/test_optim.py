"""Oracle: T5X's MultiOptimizer, which trains the same parameters alike."""

import flax
from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

pytest.importorskip("t5x", reason="T5X is not installed: see docs/t5x.md")

from t5x import adafactor, optimizers  # noqa: E402

from prompt_tuning import errors  # noqa: E402
from prompt_tuning.t5x import optim  # noqa: E402
from prompt_tuning.train import state as state_lib  # noqa: E402

PATTERNS = [".*/prompt/.*"]


def parameters(seed):
  draw = np.random.default_rng(seed).standard_normal
  return flax.core.freeze({
      "encoder": {"prompt": {"prompt": draw((5, 8)).astype("f")},
                  "mlp": {"kernel": draw((8, 8)).astype("f")}}})


AXES = flax.core.freeze({
    "encoder": {"prompt": {"prompt": P("prompt", "prompt_embed")},
                "mlp": {"kernel": P("embed", "mlp")}}})


def make(kind):
  inner = adafactor.Adafactor(
      multiply_by_parameter_scale=False, weight_decay_rate=1e-5,
      logical_factor_rules=optim.standard_logical_factor_rules())
  if kind == "ours":
    return optim.Trainable(inner, PATTERNS)
  return optimizers.MultiOptimizer(((traverse_util.ModelParamTraversal(
      state_lib.match_any(PATTERNS)), inner),))


def test_trains_as_t5xs_does():
  trained = {}
  for kind in ("ours", "theirs"):
    definition = make(kind)
    definition.set_param_axes(AXES)
    optimizer = definition.create(parameters(0))
    for step in range(3):
      optimizer = optimizer.apply_gradient(
          parameters(step + 1), learning_rate=0.3)
    trained[kind] = optimizer
  assert jax.tree.all(jax.tree.map(
      np.array_equal, trained["ours"].target, trained["theirs"].target))
  kernel = trained["ours"].target["encoder"]["mlp"]["kernel"]
  assert np.array_equal(kernel, parameters(0)["encoder"]["mlp"]["kernel"])
  assert int(trained["ours"].state.step) == 3


def test_frozen_parameters_have_no_state():
  """orbax writes T5X's None for them and cannot read it back."""
  optimizer = make("ours").create(parameters(0))
  states = optimizer.state_dict()["state"]["param_states"]
  assert set(states["encoder"]) == {"prompt"}


def test_axes_of_the_state_follow_the_trained():
  definition = make("ours")
  definition.set_param_axes(AXES)
  optimizer = jax.eval_shape(definition.create, parameters(0))
  derived = definition.derive_logical_axes(optimizer, AXES)
  assert set(derived.state.param_states["encoder"]) == {"prompt"}
  assert derived.target == AXES


def test_a_pattern_that_trains_nothing_is_refused():
  definition = optim.Trainable(adafactor.Adafactor(), [".*/promt/.*"])
  with pytest.raises(errors.UserError, match="matches no parameter"):
    definition.create(parameters(0))


def test_every_axis_of_ours_has_a_rule():
  rules = optim.standard_logical_factor_rules({"embed": jnp.nan})
  assert rules["prompt"] == rules["lora_rank"] == adafactor.FactorDim.NONE
  assert rules["batch"] == adafactor.FactorDim.BATCH
