"""Tiny bases for adapters: a model's sizes and modules, without weights."""

import re
import types

import pytest

from prompt_tuning.checkpoints import families
from prompt_tuning.formats import peft
from prompt_tuning.models import causal_lm, t5

_SIZES = {
    "vocab_size": 32, "embed_dim": 8, "num_layers": 2, "num_heads": 4,
    "head_dim": 2, "mlp_dim": 12}
_FAMILIES = {
    "gpt2": _SIZES | {"mlp_activations": ("gelu",)},
    "llama": _SIZES | {"num_kv_heads": 2, "tie_logits": False},
    "phi": _SIZES | {"mlp_activations": ("gelu",)},
    "phi3": _SIZES | {"num_kv_heads": 2},
    "codegen": _SIZES | {"mlp_activations": ("gelu",), "tie_logits": False},
    "bloom": _SIZES | {"mlp_activations": ("gelu",)},
    "t5": {"vocab_size": 32, "embed_dim": 8, "num_heads": 2, "head_dim": 4,
           "mlp_dim": 12, "num_encoder_layers": 2, "num_decoder_layers": 2}}


def _config(family):
  config = {"mlp_activations": (
      ("relu",) if family == "t5" else ("silu", "linear"))}
  return config | _FAMILIES[family]


@pytest.fixture(scope="session")
def base_of():
  """A `peft.Base` by its family's name; sizes can be changed."""

  def make(family, **changes):
    return peft.Base.of(types.SimpleNamespace(
        path=f"models/{family}", family=family,
        config=_config(family) | changes))

  return make


@pytest.fixture(scope="session")
def pieces_of():
  """A family's weight map, by its name."""

  def make(family):
    kind = t5.Config if family == "t5" else causal_lm.Config
    return families.of_type(family, "").weight_map(kind(**_config(family)), {})

  return make


@pytest.fixture(scope="session")
def lora_of():
  """Random deltas of the matching layers, one a for each module if shared."""

  def make(base, rank, rng, layers=".*", shared=False):
    found = {}
    for module in base.modules.values():
      a = rng.normal(size=(module.inputs, rank))
      for path, outputs in module.parts.items():
        if re.fullmatch(layers, path):
          found[f"{path}/lora/a"] = (
              a if shared else rng.normal(size=(module.inputs, rank)))
          found[f"{path}/lora/b"] = rng.normal(size=(rank, len(outputs)))
    return found

  return make
