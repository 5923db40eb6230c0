"""A model's configuration against that of the base weights it is given.

Weights of the right shapes run in a model of another rotation, norm or window
too, and badly. What a checkpoint says of itself is therefore compared with
what gin says, or taken instead of it.
"""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from prompt_tuning import checkpoints, errors
from prompt_tuning.checkpoints import base, families
from prompt_tuning.models import causal_lm

# How a model is run, and how long a text may be: the user's to choose.
_FREE = ("dtype", "dropout_rate", "scan_layers", "remat", "fused_attention",
         "max_positions")

# What shapes tell anyway; `base.load_base` names the arrays.
_SIZES = ("vocab_size", "embed_dim", "mlp_dim", "num_layers",
          "num_encoder_layers", "num_decoder_layers")

_PROJECTIONS = ("query", "key", "value")

# What None means in a configuration, for fields in which it means a size.
_NONE_MEANS = {"num_kv_heads": "num_heads", "rotary_dim": "head_dim"}


def causal_lm_config(
    path: str | os.PathLike, **running: Any
) -> causal_lm.Config:
  """Sizes and options of the decoder-only model in a folder or GGUF file.

  Args:
    path: see `base.open_base`.
    **running: fields of `causal_lm.Config` that no checkpoint states, such as
      `dtype` and `scan_layers`.

  Returns:
    The configuration.

  Raises:
    UserError: if there is no such checkpoint, or it is of another kind.
  """
  weights = base.open_base(path)
  stated = getattr(weights, "config", None)
  if stated is None or not _is_decoder_only(weights):
    raise errors.UserError(
        f"{path} is not a decoder-only model with a config.json, or a GGUF "
        "file: for a T5 or a RoBERTa take its own file of "
        "prompt_tuning/configs/models.")
  return causal_lm.Config(**stated, **running)


def fused_projections(path: str | os.PathLike) -> tuple[str, ...]:
  """Our projections of attention that the checkpoint's model has as one.

  Args:
    path: see `base.open_base`.

  Returns:
    Their names, ("query", "key", "value") or none; see `lora.Lora.fused`.
  """
  pieces = getattr(base.open_base(path), "pieces", {})
  places = {
      name: pieces[kernel].names for name in _PROJECTIONS
      if (kernel := f"decoder/layers_0/attention/{name}/kernel") in pieces}
  return _PROJECTIONS if len(set(places.values())) == 1 else ()


def _is_decoder_only(weights: checkpoints.BaseWeights) -> bool:
  family = families.of_type(weights.family, weights.path)
  return family.Config is causal_lm.Config


def check(weights: checkpoints.BaseWeights, config: Any) -> None:
  """Refuses weights of the right shapes that belong to another model.

  Args:
    weights: the base; formats that state nothing pass.
    config: the module's, such as a `causal_lm.Config`.

  Raises:
    UserError: naming the first option that differs.
  """
  stated = getattr(weights, "config", None)
  if not stated or not dataclasses.is_dataclass(config):
    return
  ours = vars(config)
  if not set(stated) <= set(ours):
    raise errors.UserError(
        f"{weights.path} is a model of another kind than the gin file's: take "
        "the gin file of this very model.")
  theirs = vars(type(config)(**stated))
  for name in theirs:
    if name not in (*_FREE, *_SIZES) and (
        _resolved(theirs, name) != _resolved(ours, name)):
      raise errors.UserError(
          f"{weights.path} states {name} = {theirs[name]!r}, and the gin file "
          f"of the model {ours[name]!r}: take the gin file of this very model, "
          "or for any decoder-only one "
          "prompt_tuning/configs/models/causal_lm_from_checkpoint.gin.")


def _resolved(fields: Mapping[str, Any], name: str) -> Any:
  value = fields[name]
  return fields[_NONE_MEANS[name]] if (
      value is None and name in _NONE_MEANS) else value
