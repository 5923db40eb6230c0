"""Which mesh axes the axes of our trained parameters lie on: none.

They are small, and any one host can write them to a file.
"""

AXES = ("prompt", "prompt_embed", "prompt_rank", "tasks", "prefix",
        "lora_rank", "adapter")


def standard_logical_axis_rules() -> tuple[tuple[str, None], ...]:
  """What to add to `t5x.partitioning.standard_logical_axis_rules`."""
  return tuple((axis, None) for axis in AXES)
