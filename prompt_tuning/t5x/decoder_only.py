"""A `causal_lm.CausalLM`, called as T5X calls its decoder-only modules.

T5X's text begins with a position of its own (0, or the feature converter's
`bos_id`), then inputs, then targets. A prompt is the module's own affair: the
logits and the positions that T5X sees are the text's alone.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning import errors, prompts
from prompt_tuning.methods import heads
from prompt_tuning.models import causal_lm
from prompt_tuning.train import state as state_lib

Array = jax.Array


class DecoderOnly:
  """The module of a `t5x.models.DecoderOnlyModel`.

  To T5X the cache is a flat dict whose leaves have their rows on axis 1, as it
  expects of scanned layers. It holds twice the text's length: every row's
  first token decoded goes behind the longest possible inputs, so that one
  index serves all rows, and what is between is not seen.

  Attributes:
    tells_inputs: whether the prompt is made per example, and so has to know
      which tokens are inputs: T5X's `decoder_causal_attention`.
  """

  scan_layers = True  # where T5X asks for the axis of the rows

  def __init__(self, module: causal_lm.CausalLM):
    self._module = module
    self.tells_inputs = heads.prompt_of(module) is not None
    # Each step of T5X's decoding starts from the cache alone, so the prompt
    # has to be in it; elsewhere it is run once for all examples.
    self._decoding = module.clone(share_prompt=False)

  def __getattr__(self, name):
    return getattr(self._module, name)

  def init(
      self, rng: Array, decoder_input_tokens: Array,
      decoder_target_tokens: Array, *, enable_dropout: bool,
  ) -> Mapping[str, Any]:
    """Variables; T5X may give tokens as floating-point numbers."""
    del decoder_target_tokens, enable_dropout
    return self._module.init(rng, decoder_input_tokens.astype(jnp.int32))

  def apply(
      self,
      variables: Mapping[str, Any],
      decoder_input_tokens: Array,
      decoder_target_tokens: Array,
      decoder_segment_ids: Array | None = None,
      decoder_positions: Array | None = None,
      decoder_causal_attention: Array | None = None,
      *,
      enable_dropout: bool = True,
      decode: bool = False,
      max_decode_length: int | None = None,
      prefill: bool = False,
      prefill_lengths: Array | None = None,
      rngs: Mapping[str, Array] | None = None,
      mutable: Any = False,
  ) -> Any:
    """Logits, or a step of T5X's decoding.

    Args:
      variables: `params`, and `cache` from the call before.
      decoder_input_tokens: [B, T], or [B, 1] of a step.
      decoder_target_tokens: unused; padding comes last, where no token sees
        it.
      decoder_segment_ids: must be None.
      decoder_positions: must be None.
      decoder_causal_attention: [B, T], 1 on inputs, for a prompt per example;
        otherwise None: inputs are causal all the same.
      enable_dropout: unused; `rngs` says whether deltas drop out.
      decode: a step on `cache`; without one, T5X asks for its shape, and gets
        an empty one, which prefill fills.
      max_decode_length: unused; the cache knows.
      prefill: start the cache with the inputs.
      prefill_lengths: [B] inputs to keep; the last one is the first step's.
      rngs: of deltas.
      mutable: as of any Linen module.

    Returns:
      Logits [B, T, V] float32; with `mutable`, also the changed variables.

    Raises:
      UserError: on packed examples, or inputs that see each other.
    """
    del decoder_target_tokens, enable_dropout, max_decode_length
    if decoder_segment_ids is not None or decoder_positions is not None:
      raise errors.UserError(
          "Packed examples (segment ids, positions) are not supported: a "
          "prompt belongs to one example. Set utils.DatasetConfig.pack = "
          "False.")
    if decoder_causal_attention is not None and not self.tells_inputs:
      raise errors.UserError(
          "These models see only what is before: leave out "
          "inputs_bidirectional_attention.")
    tokens = decoder_input_tokens.astype(jnp.int32)
    instance = None if decoder_causal_attention is None else prompts.Instance(
        decoder_causal_attention > 0)
    if prefill:
      return None, {"cache": self._prefilled(
          variables["params"], tokens, prefill_lengths, instance)}
    if decode and not variables.get("cache"):
      return None, {"cache": {}}
    if decode:
      return self._step(variables, tokens)
    return self._module.apply(
        variables, tokens, instance=instance, rngs=rngs, mutable=mutable)

  def _prefilled(self, params, tokens: Array, lengths: Array, instance):
    length = tokens.shape[1]
    visible = jnp.arange(length)[None] < lengths[:, None]
    _, variables = self._decoding.apply(
        {"params": params}, tokens, visible, 2 * length, instance=instance,
        longest=length, mutable=["cache"], method=self._decoding.prefill)
    return self._outside(variables["cache"], tokens.shape[0])

  def _step(self, variables, tokens: Array):
    logits, changed = self._decoding.apply(
        {"params": variables["params"],
         "cache": self._inside(variables["cache"])},
        tokens, mutable=["cache"], method=self._decoding.decode)
    return logits[:, None], {
        "cache": self._outside(changed["cache"], tokens.shape[0])}

  def _outside(self, cache, rows: int) -> dict[str, Array]:
    """Leaves [.., B, ..] with any number of axes in front -> [N, B, ..]."""
    axis = self._module.cache_batch_axis
    return {
        path: jnp.broadcast_to(leaf, (1, rows)) if leaf.ndim == 0
        else leaf.reshape(-1, *leaf.shape[axis:])
        for path, leaf in state_lib.flatten(cache).items()}

  def _inside(self, cache: Mapping[str, Array]):
    """The inverse of `_outside`."""
    config = self._module.config
    leaves = {}
    for path, leaf in cache.items():
      if path.endswith("cache_index"):
        leaves[path] = leaf[0, 0]  # the same in all rows
      elif config.scan_layers:
        layers = 1 if path.endswith("cached_visible") else config.num_layers
        leaves[path] = leaf.reshape(layers, -1, *leaf.shape[1:])
      else:
        leaves[path] = leaf
    return state_lib.unflatten(leaves)
