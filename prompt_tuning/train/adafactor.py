"""Adafactor with T5X's semantics, as an optax gradient transformation.

This file owns the update rule of the optimizer that prompts are trained with:
"Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
https://arxiv.org/abs/1804.04235, in the variant that T5X runs. It differs from
`optax.adafactor` in ways that change results:

* the second moment decays by 1 - (t + 1)^-0.8 with t the *step of the run*,
  which continues from the pretrained checkpoint (`initial_step`), not from the
  number of updates this optimizer has seen;
* weight decay is not multiplied by the learning rate;
* momentum averages the update after it was scaled by the learning rate.
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompt_tuning.errors import UserError

# Logical axes along which separate parameters are stacked (a scan over layers).
STACKING_AXES = ("layers", "stack")


class AdafactorState(NamedTuple):
  """What Adafactor remembers between two updates.

  Attributes:
    count: [] int32, the step of the run that the next update belongs to.
    moments: the parameters' tree with, for each parameter, a dict of float32
      arrays: "v_row" and "v_col" where the second moment is factored, "v"
      where it is not, and "m" with momentum.
  """

  count: jax.Array
  moments: Any


def counting_from(optimizer_state: Any, step: int) -> Any:
  """The state with its Adafactors at `step`, as `initial_step` sets it.

  Other counts in it stay: Adam's has to start at 0 to correct its bias.
  """

  def is_adafactor(node):
    return isinstance(node, AdafactorState)

  return jax.tree.map(
      lambda node: node._replace(count=jnp.asarray(step, jnp.int32))
      if is_adafactor(node) else node, optimizer_state, is_leaf=is_adafactor)


def decay_at(step, rate: float = 0.8):
  """Decay of the second moment, 1 - (step + 1)^-rate (section 7.2).

  Steps before 0, where a run started before its `step_offset`, have no memory.
  """
  return 1.0 - (jnp.maximum(step, 0).astype(jnp.float32) + 1.0) ** -rate


def factored_dimensions(
    shape: tuple[int, ...],
    min_dim_size_to_factor: int,
    stacked: tuple[int, ...] = (),
) -> tuple[int, int] | None:
  """Which dimensions of a parameter are its rows and its columns.

  Args:
    shape: the parameter's shape.
    min_dim_size_to_factor: both dimensions must be at least this long.
    stacked: dimensions that stack separate parameters, never factored.

  Returns:
    (row dimension, column dimension), the columns being the longer, or None
    where the second moment is kept in full.
  """
  dimensions = [d for d in range(len(shape)) if d not in stacked]
  if len(dimensions) < 2:
    return None
  # Stable, so that of two equal dimensions the first is the rows.
  rows, columns = sorted(dimensions, key=lambda d: shape[d])[-2:]
  return (rows, columns) if shape[rows] >= min_dim_size_to_factor else None


def root_mean_square(x: jax.Array, stacked: tuple[int, ...] = ()) -> jax.Array:
  """RMS over all dimensions but the stacked ones, which stay (as does rank)."""
  averaged = tuple(d for d in range(x.ndim) if d not in stacked)
  return jnp.sqrt(jnp.mean(jnp.square(x), axis=averaged, keepdims=True))


def second_moment_step(gradient, moments, decay, dimensions, epsilon):
  """The gradient over the root of its second moment (algorithms 4 and 5).

  Args:
    gradient: the float32 gradient of one parameter.
    moments: {"v_row", "v_col"} or {"v"}, see `AdafactorState`.
    decay: [] weight of the past.
    dimensions: (rows, columns) from `factored_dimensions`, or None.
    epsilon: added to the squared gradient.

  Returns:
    The step, in the gradient's shape, and the new second moment.
  """
  squares = jnp.square(gradient) + epsilon
  if dimensions is None:
    v = decay * moments["v"] + (1.0 - decay) * squares
    return gradient * v ** -0.5, {"v": v}
  rows, columns = dimensions
  v_row, v_col = (
      decay * moments[name] + (1.0 - decay) * jnp.mean(squares, axis=averaged)
      for name, averaged in (("v_row", columns), ("v_col", rows)))
  # In `v_row` the columns are gone, which may have moved the rows.
  mean = jnp.mean(v_row, axis=rows - (columns < rows), keepdims=True)
  step = (
      gradient
      * jnp.expand_dims((v_row / mean) ** -0.5, columns)
      * jnp.expand_dims(v_col ** -0.5, rows))
  return step, {"v_row": v_row, "v_col": v_col}


def Adafactor(  # pylint: disable=invalid-name
    learning_rate: float | Callable[[jax.Array], jax.Array],
    *,
    factored: bool = True,
    multiply_by_parameter_scale: bool = True,
    beta1: float | None = None,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    clipping_threshold: float | None = 1.0,
    weight_decay_rate: float | None = None,
    min_dim_size_to_factor: int = 128,
    epsilon1: float = 1e-30,
    epsilon2: float = 1e-3,
    initial_step: int = 0,
    logical_axes: Any = None,
) -> optax.GradientTransformation:
  """Builds the optimizer; `optax.apply_updates` gives T5X's new parameters.

  Its numbers are unlike Adam's: with `multiply_by_parameter_scale` the learning
  rate is a fraction of the parameter's own size. Prompts are trained without,
  at a learning rate of 0.3.

  Args:
    learning_rate: a number, or a function of the step of the run.
    factored: keep row and column means of the second moment of a matrix
      instead of the whole, where both its sides are long enough. A prompt of
      128 or more positions is factored, one of 100 is not.
    multiply_by_parameter_scale: multiply the learning rate by the parameter's
      RMS, at least `epsilon2`.
    beta1: momentum, or None for none.
    decay_rate: exponent of the second moment's decay, see `decay_at`.
    step_offset: step from which the decay counts; set it to the first step to
      start with a short memory.
    clipping_threshold: largest RMS of an update before the learning rate, or
      None.
    weight_decay_rate: share of the parameter that is taken away at each step,
      whatever the learning rate, or None.
    min_dim_size_to_factor: see `factored`.
    epsilon1: added to the squared gradient.
    epsilon2: smallest parameter scale.
    initial_step: step of the run at the first update. The published prompts
      go on from a model pretrained for 1,100,000 steps, where the decay is so
      slow that clipping sets the size of every step.
    logical_axes: the parameters' tree with a tuple of axis names for each;
      needed for parameters of rank 3 or more. Parameters stacked along
      "layers" are then treated as if each were alone.

  Returns:
    A transformation whose state is an `AdafactorState`, in float32.

  Raises:
    UserError: at `init`, for a parameter of rank 3 or more whose axes are not
      named.
  """
  layouts = functools.partial(
      _layouts, logical_axes=logical_axes, factored=factored,
      min_dim_size_to_factor=min_dim_size_to_factor)

  def init_moments(parameter, parameter_layout):
    _, dimensions = parameter_layout
    if dimensions is None:
      moments = {"v": jnp.zeros(parameter.shape, jnp.float32)}
    else:
      rows, columns = dimensions
      moments = {
          "v_row": jnp.zeros(_without(parameter.shape, columns), jnp.float32),
          "v_col": jnp.zeros(_without(parameter.shape, rows), jnp.float32)}
    if beta1 is not None:
      moments["m"] = jnp.zeros(parameter.shape, jnp.float32)
    return moments

  def update_one(gradient, parameter, moments, parameter_layout, decay, rate):
    """The update of one parameter and its new moments."""
    stacked, dimensions = parameter_layout
    gradient = gradient.astype(jnp.float32)
    parameter = parameter.astype(jnp.float32)
    step, new_moments = second_moment_step(
        gradient, moments, decay, dimensions, epsilon1)
    if clipping_threshold is not None:
      size = root_mean_square(step, stacked)
      step = step / jnp.maximum(1.0, size / clipping_threshold)
    if multiply_by_parameter_scale:
      rate = rate * jnp.maximum(root_mean_square(parameter, stacked), epsilon2)
    step = rate * step
    if beta1 is not None:
      step = beta1 * moments["m"] + (1.0 - beta1) * step
      new_moments["m"] = step
    # By way of the new parameter, and not -(weight_decay * parameter + step):
    # 1 - 1e-5 is rounded in float32, T5X decays by the rounded number, and
    # after 100 steps the two differ by more than 1e-6.
    keep = 1.0 - (weight_decay_rate or 0.0)
    return (keep * parameter - step) - parameter, new_moments

  def init(parameters):
    return AdafactorState(
        count=jnp.asarray(initial_step, jnp.int32),
        moments=jax.tree.map(init_moments, parameters, layouts(parameters)))

  def update(gradients, state, parameters=None):
    if parameters is None:
      raise ValueError(
          "Adafactor needs the parameters: call update(gradients, state, "
          "parameters).")
    rate = (learning_rate(state.count) if callable(learning_rate)
            else learning_rate)
    decay = decay_at(state.count - step_offset, decay_rate)
    both = jax.tree.map(
        lambda *leaf: update_one(*leaf, decay, rate),
        gradients, parameters, state.moments, layouts(parameters))
    updates, moments = _unzip(gradients, both)
    return updates, AdafactorState(state.count + 1, moments)

  return optax.GradientTransformation(init, update)


def _layouts(parameters, *, logical_axes, factored, min_dim_size_to_factor):
  """Tree of (stacked dimensions, (rows, columns) or None), one a parameter."""

  def layout(path, parameter, names):
    if factored and names is None and parameter.ndim > 2:
      raise UserError(
          f"Adafactor does not know the rows and columns of {_name(path)} "
          f"{tuple(parameter.shape)}; pass Adafactor.logical_axes, or set "
          "Adafactor.factored = False.")
    stacked = tuple(
        d for d, name in enumerate(names or ()) if name in STACKING_AXES)
    if not factored:
      return stacked, None
    return stacked, factored_dimensions(
        parameter.shape, min_dim_size_to_factor, stacked)

  names = logical_axes
  if names is None:
    names = jax.tree.map(lambda _: None, parameters)
  return jax.tree_util.tree_map_with_path(layout, parameters, names)


def _unzip(like, pairs):
  """Splits `like`'s tree of (a, b) into the tree of a and the tree of b."""
  structure = jax.tree.structure(like)
  leaves = structure.flatten_up_to(pairs)
  return (structure.unflatten([a for a, _ in leaves]),
          structure.unflatten([b for _, b in leaves]))


def _without(shape: tuple[int, ...], dimension: int) -> tuple[int, ...]:
  return tuple(np.delete(shape, dimension).tolist())


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
