"""What is left of an encoder when training is over: the table that it makes.

P-tuning's networks and the prefix's projection are for training alone. Saved,
shared and used is a prompt [P, H] or a prefix [P, L * 2 * K * D].
"""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import flax.linen as nn

from prompt_tuning import methods
from prompt_tuning.methods import p_tuning, prefix, projected

_ENCODERS = (
    p_tuning.MlpPrompt, p_tuning.LstmPrompt, projected.ProjectedPrompt)


def fold(module: nn.Module, params: Mapping[str, Any]) -> dict[str, Any]:
  """Parameters with their encoders, if there are any, folded.

  Args:
    module: a `causal_lm.CausalLM` or `t5.EncoderDecoder`.
    params: its parameters, or the trained ones among them.

  Returns:
    The tree with `…/prompt/prompt/prompt`, `decoder/prefix/prefix` and the
    other prefixes in the place of what made them. Other parameters, and plain
    prompts, are as given.
  """
  flat = traverse_util.flatten_dict(dict(params), sep="/")
  is_t5 = hasattr(module, "decoder_prefix_factory")
  prompts = f"{'encoder' if is_t5 else 'decoder'}/prompt/prompt"
  encoder = _made(getattr(module, "prompt_factory", None), "prompt")
  if isinstance(encoder, _ENCODERS):
    flat = _replaced(
        flat, prompts, "prompt",
        lambda own: methods.folded(encoder, own, module.config.embed_dim))
  for path, made, layers in prefixes(module):
    flat = _replaced(
        flat, path, "prefix",
        lambda own, made=made, layers=layers: prefix.fold(
            made, own, module.config, layers))
  return traverse_util.unflatten_dict(flat, sep="/")


def prefixes(module: nn.Module) -> list[tuple[str, nn.Module, int]]:
  """A model's prefixes.

  Args:
    module: see `fold`.

  Returns:
    Of each: the path of its parameters, its module, and how many layers get
    keys and values of it.
  """
  config = module.config
  if hasattr(module, "decoder_prefix_factory"):
    doors = (
        ("encoder/prefix", "encoder_prefix_factory",
         config.num_encoder_layers),
        ("decoder/prefix", "decoder_prefix_factory",
         config.num_decoder_layers),
        ("decoder/cross_prefix", "cross_prefix_factory",
         config.num_decoder_layers))
  else:
    doors = (("decoder/prefix", "prefix_factory", config.num_layers),)
  return [
      (path, made, layers) for path, name, layers in doors
      if (made := _made(getattr(module, name, None))) is not None]


def _made(factory, attribute: str | None = None):
  if factory is None:
    return None
  made = factory()
  return getattr(made, attribute, None) if attribute else made


def _replaced(flat, path: str, name: str, make) -> dict[str, Any]:
  """The parameters under `path` replaced by the one that `make` gives."""
  own = {key.removeprefix(f"{path}/"): value for key, value in flat.items()
         if key.startswith(f"{path}/")}
  if not own:
    return flat
  rest = {key: value for key, value in flat.items()
          if not key.startswith(f"{path}/")}
  table = make(traverse_util.unflatten_dict(own, sep="/"))
  return rest | {f"{path}/{name}": table}
