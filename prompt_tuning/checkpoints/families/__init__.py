"""The model families of Hugging Face's directories: one file for each.

A family's file says what its config.json means and where its weights lie. It
has, always under the same names:

    NAME          what it is called in messages
    MODEL_TYPES   the `model_type`s of config.json that are read as it; the
                  first is written, and is `BaseWeights.family`
    AUTO_CLASS    the class of transformers that loads it
    PREFIX        what some writers leave out before the names of its tensors
    IGNORED       a pattern of tensors that hold nothing to load, or None
    Config        the configuration class of our model
    POOLING       of an encoder: how a text becomes one vector, see
                  `models.text_encoder`
    HEADS         of some: a module beside the network -> what config.json
                  calls a model that has it
    read_config(config: ConfigJson) -> dict      keywords of `Config`
    write_config(config: Config) -> dict         its inverse: config.json
    weight_map(config: Config, content) -> Map   our paths -> pieces of tensors
        (content: of config.json, for layouts that `Config` knows nothing of)
"""

from collections.abc import Mapping
import types
from typing import Any

from prompt_tuning import errors
from prompt_tuning.checkpoints.families import (
    bart,
    bert,
    bloom,
    codegen,
    codesage,
    gpt2,
    llama,
    phi,
    phi3,
    roberta,
    t5,
)

ALL = (
    t5, bart, gpt2, llama, phi, phi3, codegen, bloom, bert, roberta, codesage)

ENCODERS = (bert, roberta, codesage)

_BY_TYPE = {kind: family for family in ALL for kind in family.MODEL_TYPES}


def of_type(model_type: str, file: str) -> types.ModuleType:
  """The family of a config.json's `model_type`.

  Args:
    model_type: what `file` says.
    file: named if there is no such family.

  Raises:
    UserError: lists the types that are known.
  """
  if not isinstance(model_type, str) or model_type not in _BY_TYPE:
    raise errors.UserError(
        f"{file} describes a model of type {model_type!r}: only "
        f"{', '.join(_BY_TYPE)} can be read.")
  return _BY_TYPE[model_type]


def of_config(content: Mapping[str, Any], file: str) -> types.ModuleType:
  """The family of a config.json; see `of_type`.

  CodeSage's files have no `model_type`: it is told by its architecture.

  Args:
    content: of config.json.
    file: named if there is no such family.
  """
  model_type = content.get("model_type")
  architectures = content.get("architectures")
  if model_type is None and isinstance(architectures, list) and any(
      str(name).startswith("CodeSage") for name in architectures):
    return codesage
  return of_type(model_type, file)
