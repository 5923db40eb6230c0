"""What a config.json says: each value is checked when it is asked for."""

from collections.abc import Mapping
import math
from typing import Any, NoReturn

from prompt_tuning import errors

_ABSENT = object()


class ConfigJson:
  """The content of one config.json; its complaints name the file."""

  def __init__(self, file: str, content: Mapping[str, Any]):
    self.file = file
    self.content = content

  def refuse(self, what: str, instead: str) -> NoReturn:
    """Raises the sentence `FILE has WHAT: INSTEAD.`"""
    raise errors.UserError(f"{self.file} has {what}: {instead}.")

  def get(self, *names: str, default=None):
    """The first value that is there and not null; older files have aliases."""
    for name in names:
      value = self.content.get(name)
      if value is not None:
        return value
    return default

  def size(self, *names: str, default: int | None = None) -> int:
    """A positive integer, under any of `names`."""
    value = self.get(*names, default=default)
    if type(value) is not int or value <= 0:
      self.refuse(
          f"{names[0]} {value!r}, which must be a positive integer",
          "copy the file again")
    return value

  def number(self, *names: str, default: float | None = None) -> float:
    """A positive number, under any of `names`."""
    value = self.get(*names, default=default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
      self.refuse(
          f"{names[0]} {value!r}, which must be a positive number",
          "copy the file again")
    return value

  def flag(self, name: str, default: bool) -> bool:
    """A truth value."""
    value = self.get(name, default=default)
    if type(value) is not bool:
      self.refuse(f"{name} {value!r}, which must be true or false",
                  "copy the file again")
    return value

  def choice(self, name: str, table: Mapping[str, Any], default=None):
    """What `table` has for the value of `name`; others are not implemented."""
    value = self.get(name, default=default)
    if not isinstance(value, str) or value not in table:
      self.refuse(
          f"{name} {value!r}", f"only {', '.join(table)} are implemented")
    return table[value]

  def must_be(self, name: str, allowed, default=_ABSENT):
    """Refuses any value of `name` but `allowed`.

    Args:
      name: of a setting that the family's published models do not vary.
      allowed: what is implemented.
      default: what an absent setting means; `allowed` if it is not given.
    """
    default = allowed if default is _ABSENT else default
    value = self.get(name, default=default)
    if value != allowed:
      self.refuse(f"{name} {value!r}", f"only {allowed!r} is implemented")

  def heads(self, width: int, *names: str) -> tuple[int, int]:
    """(N, D) of a family whose heads share the width H evenly."""
    count = self.size(*names)
    if width % count:
      self.refuse(
          f"{names[0]} {count}, which does not divide the width {width}",
          "copy the file again")
    return count, width // count

  def kv_heads(self, heads: int) -> int:
    """K, which divides N."""
    count = self.size("num_key_value_heads", default=heads)
    if heads % count:
      self.refuse(
          f"num_key_value_heads {count}, which {heads} query heads cannot "
          "share evenly", "copy the file again")
    return count


# What config.json calls the activation of an MLP without a gate, and ours.
ACTIVATIONS = {
    "gelu_new": ("gelu",), "gelu_pytorch_tanh": ("gelu",),
    "gelu_fast": ("gelu",), "gelu": ("gelu_exact",), "relu": ("relu",)}


def activation_name(config) -> str:
  """The name in `ACTIVATIONS` that is written for a model's activation."""
  activations = tuple(config.mlp_activations)
  for name, ours in ACTIVATIONS.items():
    if ours == activations:
      return name
  raise errors.UserError(
      f"config.json of this family cannot say mlp_activations {activations}: "
      "save the model as the family that it is of.")
