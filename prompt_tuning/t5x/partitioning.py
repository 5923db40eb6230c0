"""Which mesh axes the axes of our trained parameters lie on: none."""

from prompt_tuning.train import sharding


def standard_logical_axis_rules() -> tuple[tuple[str, None], ...]:
  """What to add to `t5x.partitioning.standard_logical_axis_rules`."""
  return tuple((axis, None) for axis in sharding.TRAINED_AXES)
