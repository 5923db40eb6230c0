"""Learning rates as pure functions of the step of the run.

A schedule takes the step, counted as the run counts it (a prompt trained on
top of a checkpoint of step 1,100,000 starts there), and returns a [] float32
learning rate. Schedules run inside the jitted step.
"""

import math
from typing import Callable

import jax
import jax.numpy as jnp

from prompt_tuning.errors import UserError

Schedule = Callable[[jax.Array | int], jax.Array]

FACTORS = (
    "constant", "linear_warmup", "linear_decay", "rsqrt_decay",
    "rsqrt_normalized_decay", "decay_every", "cosine_decay")


def create_learning_rate_scheduler(
    factors: str = "constant * linear_warmup * rsqrt_decay",
    base_learning_rate: float = 0.5,
    warmup_steps: int = 1000,
    decay_factor: float = 0.5,
    steps_per_decay: int = 20000,
    steps_per_cycle: int = 100000,
    step_offset: int = 0,
    min_learning_rate: float = 1e-8,
) -> Schedule:
  """A product of factors, with T5X's names, arguments and numbers.

  With s the steps since `step_offset` (at least 0), the factors are

  * constant: base_learning_rate
  * linear_warmup: s / warmup_steps, at most 1
  * linear_decay: base_learning_rate times the smaller of s / warmup_steps and
    1 - decay_factor * (s - warmup_steps); it already contains the two above
  * rsqrt_decay: 1 / sqrt(max(s, warmup_steps))
  * rsqrt_normalized_decay: the same, times sqrt(warmup_steps)
  * decay_every: decay_factor to the power of (s // steps_per_decay)
  * cosine_decay: from 1 to 0 over steps_per_cycle after the warm-up, then again

  A `warmup_steps` of 0 means no warm-up (T5X divides by it).

  Args:
    factors: names of factors, joined by "*".
    base_learning_rate: see above.
    warmup_steps: see above.
    decay_factor: see above.
    steps_per_decay: see above.
    steps_per_cycle: see above.
    step_offset: step of the run that the schedule counts from.
    min_learning_rate: never less than this.

  Returns:
    The schedule.

  Raises:
    UserError: for a factor that does not exist, or a period below 1.
  """
  names = [name.strip() for name in factors.split("*")]
  unknown = [name for name in names if name not in FACTORS]
  if unknown:
    raise UserError(
        f"create_learning_rate_scheduler.factors = {factors!r} has the unknown "
        f"factor {unknown[0]!r}; use {', '.join(FACTORS)}, joined by '*'.")
  for key, value in (("steps_per_decay", steps_per_decay),
                     ("steps_per_cycle", steps_per_cycle)):
    if value < 1:
      raise UserError(
          f"create_learning_rate_scheduler.{key} = {value}; it must be 1 or "
          "more.")

  def warmup(step):
    return step / warmup_steps if warmup_steps else math.inf

  def longest(step):
    return jnp.maximum(step, max(warmup_steps, 1))

  values = {
      "constant": lambda step: base_learning_rate,
      "linear_warmup": lambda step: jnp.minimum(1.0, warmup(step)),
      "linear_decay": lambda step: base_learning_rate * jnp.minimum(
          warmup(step), 1.0 + decay_factor * (warmup_steps - step)),
      "rsqrt_decay": lambda step: 1.0 / jnp.sqrt(longest(step)),
      "rsqrt_normalized_decay": lambda step: (
          math.sqrt(max(warmup_steps, 1)) / jnp.sqrt(longest(step))),
      "decay_every": lambda step: decay_factor ** (step // steps_per_decay),
      "cosine_decay": lambda step: 0.5 * (1.0 + jnp.cos(
          jnp.pi * (jnp.maximum(0.0, step - warmup_steps)
                    / steps_per_cycle % 1.0))),
  }

  def schedule(step):
    step = jnp.maximum(0, step - step_offset)
    rate = 1.0
    for name in names:
      rate = rate * values[name](step)
    return jnp.asarray(jnp.maximum(rate, min_learning_rate), jnp.float32)

  return schedule


def linear_decay(
    base_learning_rate: float,
    total_steps: int,
    warmup_steps: float = 0,
    step_offset: int = 0,
) -> Schedule:
  """Up from 0 over the warm-up, then down to 0 at the last step.

  The numbers of Hugging Face's `get_linear_schedule_with_warmup`.

  Args:
    base_learning_rate: the rate at the end of the warm-up.
    total_steps: steps from `step_offset` to where the rate is 0.
    warmup_steps: the first of these steps; below 1, a share of them.
    step_offset: step of the run that the schedule counts from.

  Returns:
    The schedule.

  Raises:
    UserError: when the warm-up is longer than the whole.
  """
  if 0 < warmup_steps < 1:
    warmup_steps = round(warmup_steps * total_steps)
  if not 0 <= warmup_steps <= total_steps:
    raise UserError(
        f"linear_decay.warmup_steps = {warmup_steps} must be between 0 and "
        f"linear_decay.total_steps = {total_steps}.")

  def schedule(step):
    step = jnp.maximum(0, step - step_offset)
    up = step / max(warmup_steps, 1)
    down = (total_steps - step) / max(total_steps - warmup_steps, 1)
    share = jnp.where(step < warmup_steps, up, jnp.maximum(down, 0.0))
    return jnp.asarray(base_learning_rate * share, jnp.float32)

  return schedule


def warmed_up(
    base_learning_rate: float, total_steps: int, warmup_share: float,
    step_offset: int = 0,
) -> Schedule:
  """Up from 0 over a share of the run, then constant.

  The numbers of Hugging Face's `get_constant_schedule_with_warmup`, whose
  warm-up is a whole number of steps, rounded up.

  Args:
    base_learning_rate: the rate after the warm-up.
    total_steps: of the run.
    warmup_share: of `total_steps`, 0 to 1.
    step_offset: step of the run that the schedule counts from.

  Returns:
    The schedule.

  Raises:
    UserError: when the share is not between 0 and 1.
  """
  if not 0 <= warmup_share <= 1:
    raise UserError(
        f"warmed_up.warmup_share = {warmup_share} must be between 0 and 1.")
  warmup_steps = max(1, math.ceil(total_steps * warmup_share))

  def schedule(step):
    step = jnp.maximum(0, step - step_offset)
    share = jnp.minimum(step / warmup_steps, 1.0)
    return jnp.asarray(base_learning_rate * share, jnp.float32)

  return schedule
