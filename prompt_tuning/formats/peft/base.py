"""What an adapter must know of the model that it changes."""

from collections.abc import Mapping
import dataclasses
import os
from typing import NoReturn

from prompt_tuning import errors
from prompt_tuning.checkpoints import families
from prompt_tuning.formats.peft import modules


@dataclasses.dataclass(frozen=True)
class Base:
  """A base model: its sizes by the letters of `docs/notation.md`, its modules.

  Attributes:
    name: for `base_model_name_or_path`.
    is_encoder_decoder: whether it is one.
    embed_dim: H.
    num_layers: L, of the encoder where there is one.
    num_decoder_layers: L where there is no encoder.
    num_heads: N.
    num_kv_heads: K.
    head_dim: D.
    modules: its dense modules by Hugging Face's names.
    is_encoder: whether it has no decoder at all, as RoBERTa.
    prefix_has_positions: whether a prefix moves, in PEFT, the decoder's tokens
      to later rows of a position table, as in BART.
  """

  name: str
  is_encoder_decoder: bool
  embed_dim: int
  num_layers: int
  num_decoder_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  modules: Mapping[str, modules.Module]
  is_encoder: bool = False
  prefix_has_positions: bool = False

  @classmethod
  def of(cls, weights, name: str | None = None) -> "Base":
    """From an opened checkpoint (`checkpoints.base.open_base`).

    Args:
      weights: has `config` and `family`.
      name: the model's name; the folder's if None.

    Raises:
      UserError: if the checkpoint does not say its sizes, as T5X's do not.
    """
    config = getattr(weights, "config", None)
    if not config:
      raise errors.UserError(
          f"{weights.path} does not say what model it is, which PEFT's files "
          "must: give the model as a Hugging Face directory.")
    family = families.of_type(weights.family, weights.path)
    layers = config.get("num_layers") or config["num_encoder_layers"]
    heads = config["num_heads"]
    return cls(
        name=name or os.path.basename(os.path.abspath(weights.path)),
        is_encoder_decoder="num_encoder_layers" in config,
        embed_dim=config["embed_dim"], num_layers=layers,
        num_decoder_layers=config.get("num_decoder_layers") or layers,
        num_heads=heads, num_kv_heads=config.get("num_kv_heads") or heads,
        head_dim=config["head_dim"],
        modules=modules.of_pieces(_pieces(weights)),
        is_encoder=family in families.ENCODERS,
        prefix_has_positions=family is families.bart)

  @property
  def task(self) -> str | None:
    """PEFT's `task_type`; it has none for masked language models."""
    if self.is_encoder:
      return None
    return "SEQ_2_SEQ_LM" if self.is_encoder_decoder else "CAUSAL_LM"

  @property
  def prompt_path(self) -> str:
    """Where the model has its prompt."""
    has_encoder = self.is_encoder or self.is_encoder_decoder
    side = "encoder" if has_encoder else "decoder"
    return f"{side}/prompt/prompt"

  def check_task(self, adapter) -> None:
    """Refuses an adapter of another task type.

    Raises:
      UserError: naming both.
    """
    task = adapter.config["task_type"]
    if task not in (None, self.task):
      raise errors.UserError(
          f"{adapter.path} is an adapter for the task type {task}, and "
          f"{self.name} is a model for {self.task}: take an adapter that was "
          "trained on this model.")

  def refuse(self, adapter, what: str) -> NoReturn:
    """Raises the `UserError` of an adapter for another model."""
    theirs = adapter.config["base_model_name_or_path"]
    raise errors.UserError(
        f"{adapter.path} {what}: it was trained on {theirs!r} and does not "
        f"fit {self.name}; take the base model that it was trained on.")


def _pieces(weights):
  """The weight map: a reader's own, or what its family's usually is."""
  found = getattr(weights, "pieces", None)
  if found is not None:
    return found
  family = families.of_type(weights.family, weights.path)
  return family.weight_map(family.Config(**weights.config), {})
