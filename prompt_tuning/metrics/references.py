"""Targets with one right text or several."""

from collections.abc import Sequence
from typing import Any


def texts_of(target: Any) -> Sequence[Any]:
  """The right texts of a target, which is one text or a list of them."""
  return target if isinstance(target, (list, tuple)) else [target]
