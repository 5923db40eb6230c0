"""Adapters of Hugging Face PEFT: their directories, and our parameters.

    adapter = peft.load("sst2_lora")
    base = peft.Base.of(checkpoints.base.open_base("gpt2"))
    params = peft.to_params(adapter, base)      # beside the base's own
    module = causal_lm.CausalLM(config, **peft.arguments(adapter, base))
    delta = peft.delta(adapter, base)           # LoRA and (IA)3
    peft.save(peft.from_params(params, base, "LORA", delta), "copy")

An adapter is `adapter_config.json` and `adapter_model.safetensors`. Nothing in
it is run: no pickle is read, no class or tokenizer that it names is loaded.
"""

from collections.abc import Mapping
from typing import Any

from prompt_tuning.formats.peft import configs, deltas, prompts
from prompt_tuning.formats.peft.base import Base
from prompt_tuning.formats.peft.doors import arguments, decoder_prompt
from prompt_tuning.formats.peft.files import Adapter, is_adapter, load, save
from prompt_tuning.formats.peft.prompts import plain_table

__all__ = [
    "Adapter", "Base", "arguments", "decoder_prompt", "delta", "from_params",
    "is_adapter", "load", "plain_table", "save", "to_params"]


def to_params(adapter: Adapter, base: Base) -> dict[str, Any]:
  """The adapter as parameters of our model, and nothing else of the model's.

  Args:
    adapter: see `load`.
    base: the model it is to change.

  Returns:
    A nested dict of float32 arrays: `decoder/prompt/prompt/…`,
    `decoder/prefix/prefix`, or `lora` and `ia3` inside the layers' own.

  Raises:
    UserError: if the adapter was made for a model of another kind or size.
  """
  base.check_task(adapter)
  if adapter.type in configs.DELTAS:
    return deltas.to_params(adapter, base)
  return prompts.to_params(adapter, base)


def delta(adapter: Adapter, base: Base):
  """What goes into the model as `delta` beside `to_params`; None for prompts.

  Returns:
    A `methods.lora.Lora` or `methods.ia3.Ia3`, or None.

  Raises:
    UserError: see `to_params`.
  """
  base.check_task(adapter)
  if adapter.type in configs.DELTAS:
    return deltas.delta(adapter, base)
  return None


def from_params(
    params: Mapping[str, Any], base: Base, kind: str, delta=None, **fields
) -> Adapter:
  """Trained parameters as an adapter.

  Args:
    params: nested; others than those of the method are left out. Encoders are
      folded first (`methods.folded`, `methods.prefix.fold`), into
      `decoder/prompt/prompt/prompt` and `decoder/prefix/prefix`.
    base: the model they change.
    kind: PEFT's name of the method, such as "PROMPT_TUNING".
    delta: the `Lora` or `Ia3` that was trained, if it was one.
    **fields: of `adapter_config.json`, instead of the values that they would
      get.

  Returns:
    The adapter.

  Raises:
    UserError: if the parameters are not of this method, or PEFT cannot have
      them.
  """
  configs.check_kind(kind, "from_params")
  if kind in configs.DELTAS:
    return deltas.from_params(params, base, kind, delta, fields)
  return prompts.from_params(params, base, kind, fields)
