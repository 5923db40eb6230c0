"""AdamW and gradient clipping under names that gin files bind.

Adafactor, which prompts are trained with, has its own file.
"""

from collections.abc import Callable, Sequence

import jax
import optax

from prompt_tuning.errors import UserError
from prompt_tuning.train import state as state_lib


def AdamW(  # pylint: disable=invalid-name
    learning_rate: float | Callable[[jax.Array], jax.Array],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """Adam with weight decay apart from the gradient, by optax.

  The defaults are those of the Hugging Face trainer (decay 0), so that runs
  compare with PEFT's; optax's own decay is 1e-4 and torch's 0.01. The decay is
  multiplied by the learning rate, unlike Adafactor's. The source is "Decoupled
  Weight Decay Regularization", https://arxiv.org/abs/1711.05101.

  Args:
    learning_rate: a number, or a function of the count of updates, which
      starts at 0 whatever the step of the run.
    b1: decay of the mean of the gradients.
    b2: decay of the mean of their squares.
    eps: added to the root of the second moment.
    weight_decay: share of a parameter taken away at a learning rate of 1.

  Returns:
    The transformation.
  """
  return optax.adamw(
      learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def clipped(
    optimizer: optax.GradientTransformation, max_norm: float,
) -> optax.GradientTransformation:
  """`optimizer` on gradients whose global norm is at most `max_norm`.

  The norm is taken over all trained parameters together; see "On the difficulty
  of training recurrent neural networks", https://arxiv.org/abs/1211.5063.

  Args:
    optimizer: what receives the clipped gradients.
    max_norm: the largest norm.

  Returns:
    The transformation.

  Raises:
    UserError: when `max_norm` is not above 0.
  """
  if not max_norm > 0:
    raise UserError(
        f"clipped.max_norm = {max_norm} must be above 0; leave `clipped` out "
        "for no clipping.")
  return optax.chain(optax.clip_by_global_norm(max_norm), optimizer)


def grouped(
    groups: Sequence[tuple[str, optax.GradientTransformation]],
    optional: Sequence[tuple[str, optax.GradientTransformation]] = (),
) -> optax.GradientTransformation:
  """Another optimizer for each group of parameters.

  Args:
    groups: (pattern, optimizer); a parameter belongs to the first pattern that
      matches its whole path, see `state.split`.
    optional: groups that come before those and may have no parameter, such as
      an encoder's that some runs train.

  Returns:
    The transformation.

  Raises:
    UserError: when it begins, if a parameter belongs to no group or one of
      `groups` has no parameter.
  """
  groups = [*optional, *groups]
  belongs = [state_lib.match_any([pattern]) for pattern, _ in groups]

  def labels(tree):
    flat = state_lib.flatten(tree)
    found = {
        path: next((i for i, matches in enumerate(belongs) if matches(path)),
                   None) for path in flat}
    lost = [path for path, group in found.items() if group is None]
    if lost:
      raise UserError(
          f"No pattern of optimizers.grouped.groups matches {lost[0]}: add "
          "one, such as '.*', for the rest.")
    unused = set(range(len(optional), len(groups))) - set(found.values())
    if unused:
      raise UserError(
          f"The pattern {groups[min(unused)][0]!r} in "
          "optimizers.grouped.groups has no trained parameter for itself; "
          "paths look like "
          f"{', '.join(list(flat)[:3])}.")
    return state_lib.unflatten(found)

  return optax.partition(
      {i: optimizer for i, (_, optimizer) in enumerate(groups)}, labels)
