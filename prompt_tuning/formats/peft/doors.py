"""Room in our models for what an adapter holds."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning import prompts
from prompt_tuning.formats.peft import configs
from prompt_tuning.formats.peft import prompts as tables
from prompt_tuning.formats.peft.base import Base
from prompt_tuning.formats.peft.files import Adapter
from prompt_tuning.methods import multitask, prefix
from prompt_tuning.models import layers, t5
from prompt_tuning.train import prompts as train_prompts


def arguments(adapter: Adapter, base: Base, task: int = 0) -> dict[str, Any]:
  """What a module is made with to have a place for `peft.to_params`.

  Args:
    adapter: see `peft.load`.
    base: the model it is to change.
    task: which of a multitask prompt's tasks.

  Returns:
    Arguments of `causal_lm.CausalLM`, `t5.EncoderDecoder` or
    `bart.EncoderDecoder`; none for LoRA and (IA)3, whose place is `peft.delta`.
  """
  if adapter.type in configs.DELTAS:
    return {}
  length = tables.length_of(adapter)
  if adapter.type == "PREFIX_TUNING":
    name = ("decoder_prefix_factory" if base.is_encoder_decoder
            else "prefix_factory")
    found = {name: functools.partial(prefix.Prefix, length)}
    if base.prefix_has_positions:
      found["prefix_has_positions"] = True
    return found
  if adapter.type == "MULTITASK_PROMPT_TUNING":
    one = functools.partial(
        multitask.MultitaskPrompt, length, *tables.tasks_and_ranks(adapter),
        task)
  else:
    one = functools.partial(prompts.Prompt, length)
  return {"prompt_factory": lambda: train_prompts.Prompt(one())}


def decoder_prompt(prompt: jax.Array) -> Callable[..., Any]:
  """Puts a prompt in front of T5's decoder, where PEFT's multitask ones are.

  PEFT trains with it and generates without it; our T5 has no place for it, and
  this is a function for `flax.linen.intercept_methods` that makes one.

  Args:
    prompt: [P, H]; `methods.folded` of what lies under `decoder/prompt/prompt`.

  Returns:
    The function. Logits are P longer.
  """
  length = len(prompt)
  inside = False

  def intercept(next_function, arguments, options, context):
    nonlocal inside
    if context.method_name != "__call__":
      return next_function(*arguments, **options)
    if isinstance(context.module, t5.Decoder):
      encoded, visible, tokens = arguments
      inside = True
      try:
        return next_function(
            encoded, visible, jnp.pad(tokens, ((0, 0), (length, 0))),
            **options)
      finally:
        inside = False
    out = next_function(*arguments, **options)
    if inside and isinstance(context.module, layers.Embed):
      out = out.at[:, :length].set(prompt.astype(out.dtype))
    return out

  return intercept
