"""Rotary positions in config.json, in the form of each age of transformers.

Before version 5: `rope_theta`, `rope_scaling` and `partial_rotary_factor` side
by side; from 5 on, all of them in `rope_parameters`. Both are read, and the
older is written, which all versions read.
"""

from collections.abc import Mapping
import math

from prompt_tuning.checkpoints.families import config_json
from prompt_tuning.models import causal_lm, rotary


def read(
    config: config_json.ConfigJson, head_dim: int, partial: float = 1.0
) -> dict:
  """What config.json says of rotary positions, by `causal_lm.Config`'s names.

  Args:
    config: of the model.
    head_dim: D.
    partial: the family's share of D that is rotated.

  Returns:
    positions, max_positions, rotary_dim, rope_theta, rope_scaling.

  Raises:
    UserError: for a kind of scaling that is not implemented.
  """
  values = _values(config)
  max_positions = config.size("max_position_embeddings", default=2048)
  share = values.number("partial_rotary_factor", default=partial)
  rotary_dim = int(head_dim * share)
  if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
    config.refuse(
        f"partial_rotary_factor {share} of heads of width {head_dim}",
        "an even number of each head's entries must be rotated")
  return {
      "positions": "rotary",
      "max_positions": max_positions,
      "rotary_dim": None if rotary_dim == head_dim else rotary_dim,
      "rope_theta": values.number("rope_theta", default=10000.0),
      "rope_scaling": _scaling(values, max_positions),
  }


def _values(config: config_json.ConfigJson) -> config_json.ConfigJson:
  """Both ages' entries in one place; the nested ones win, as they do there."""
  nested = config.get("rope_scaling", "rope_parameters", default={})
  if not isinstance(nested, Mapping) or any(
      isinstance(value, Mapping) for value in nested.values()):
    config.refuse(
        f"rope parameters {nested!r}"[:200],
        "only one set of them for all layers is implemented")
  theirs = config.get("rope_parameters", default={})
  outside = {
      name: config.get(name) for name in ("rope_theta", "partial_rotary_factor")
  }
  return config_json.ConfigJson(config.file, {**outside, **theirs, **nested})


def _scaling(
    values: config_json.ConfigJson, max_positions: int
) -> rotary.RopeScaling | None:
  kind = values.get("rope_type", "type", default="default")
  if kind == "default":
    return None
  if kind == "linear":
    return rotary.RopeScaling("linear", values.number("factor"))
  if kind == "llama3":
    return rotary.RopeScaling(
        "llama3", values.number("factor"),
        values.number("low_freq_factor", default=1.0),
        values.number("high_freq_factor", default=4.0),
        values.size(
            "original_max_position_embeddings", default=max_positions))
  if kind in ("longrope", "su"):
    values.refuse(
        f"rope scaling {kind!r}, which stretches a model to long context",
        "it is not implemented, take the variant of the model for short "
        "context, such as Phi-3-mini-4k-instruct")
  values.refuse(
      f"rope scaling {kind!r}",
      "only 'default', 'linear' and 'llama3' are implemented")


def write(config: causal_lm.Config, partial: float = 1.0) -> dict:
  """The inverse of `read`: entries of config.json.

  Args:
    config: of the model.
    partial: the family's share of D that is rotated when config.json is
      silent.
  """
  written = {
      "max_position_embeddings": config.max_positions,
      "rope_theta": config.rope_theta,
      "rope_scaling": None,
  }
  share = _share(config.rotary_dim or config.head_dim, config.head_dim)
  if not share == partial == 1.0:
    written["partial_rotary_factor"] = share
  if scaling := config.rope_scaling:
    written["rope_scaling"] = {
        "rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
      written["rope_scaling"] |= {
          "low_freq_factor": scaling.low_freq_factor,
          "high_freq_factor": scaling.high_freq_factor,
          "original_max_position_embeddings": scaling.original_max_positions}
  return written


def _share(rotary_dim: int, head_dim: int) -> float:
  share = rotary_dim / head_dim
  # The product is cut to an integer, and may fall just below it.
  return share if int(head_dim * share) == rotary_dim else math.nextafter(
      share, 1.0)
