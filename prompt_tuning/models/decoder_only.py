"""What the engine asks of a decoder-only model: loss, scores, predictions.

Inputs and targets are one text; the loss and so the product with the
vocabulary exist at the targets' positions only.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import prompts
from prompt_tuning.data import features as features_lib
from prompt_tuning.decoding import beam, constraints
from prompt_tuning.methods import interception
from prompt_tuning.models import language_model

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DecoderOnlyModel(language_model.LanguageModel):
  """A `causal_lm.CausalLM` with its vocabulary, loss and decoding.

  Attributes:
    features: how its batches are made.
    module: see `causal_lm.CausalLM`.
    vocabulary: of inputs and targets.
    others: see `language_model.LanguageModel`; the mean over target tokens is
      the loss that Hugging Face has.
  """

  features: ClassVar[features_lib.Encoding] = features_lib.DecoderOnly()

  module: nn.Module
  vocabulary: Any
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  loss_normalizing_factor: float | str | None = "num_tokens"
  decode_fn: Callable[..., tuple[Array, Array]] = functools.partial(
      beam.beam_search, num_beams=1)
  delta: interception.Delta | None = None
  instance_encoder: Any = None

  @property
  def input_vocabulary(self):
    return self.vocabulary

  @property
  def output_vocabulary(self):
    return self.vocabulary

  def init(self, rng: Array) -> Params:
    """See `LanguageModel.init`."""
    return self._init(
        rng, jnp.ones((1, 1), jnp.int32), instance=self._unknown_instance())

  def check_lengths(self, lengths: Mapping[str, int]) -> None:
    """See `language_model.LanguageModel.check_lengths`."""
    # The module itself knows how long its prompt is; one layer traces fast. But
    # a prefix may be a saved one, of all layers.
    small = self.module
    if small.prefix_factory is None:
      small = small.clone(
          config=dataclasses.replace(small.config, num_layers=1))
    tokens = jax.ShapeDtypeStruct((1, sum(lengths.values())), jnp.int32)
    jax.eval_shape(
        functools.partial(small.init, instance=self._unknown_instance()),
        jax.random.PRNGKey(0), tokens)

  def hidden(
      self, params: Params, batch: Batch, dropout_rng: Array | None = None
  ) -> Array:
    """See `LanguageModel.hidden`.

    `dropout_rng` is for the network, at its `dropout_rate`, and for methods.
    """
    tokens = batch["decoder_input_tokens"]
    return self._apply(
        {"params": params}, tokens,
        target_positions=batch["decoder_target_positions"],
        instance=_instance(batch, tokens), method=self.module.hidden,
        rngs=None if dropout_rng is None else {"dropout": dropout_rng})

  def decodes(
      self, params: Params, batch: Batch, rng: Array | None = None
  ) -> tuple[Array, Array]:
    """See `LanguageModel.decodes`.

    All inputs but the last token fill the cache; the last one is the first
    step's. Padding stays in the cache, unseen. A shared prompt's keys and
    values are made once and belong to every hypothesis.
    """
    rows, length = batch["decoder_target_tokens"].shape
    tokens = batch["decoder_input_tokens"]
    tokens = tokens[:, :tokens.shape[1] - length]  # no target among them
    last = batch["decoder_target_positions"][:, :1]  # [B, 1]
    visible = jnp.arange(tokens.shape[1])[None] < last
    prefix = self._apply(
        {"params": params}, tokens, method=self.module.shared_prefix)
    _, started = self._apply(
        {"params": params}, tokens, visible, tokens.shape[1] + length, prefix,
        _instance(batch, tokens), mutable=["cache"],
        method=self.module.prefill)

    def step(tokens: Array, cache) -> tuple[Array, Any]:
      logits, variables = self._apply(
          {"params": params, "cache": cache}, tokens, prefix,
          mutable=["cache"], method=self.module.decode)
      return logits, variables["cache"]

    first = jnp.take_along_axis(tokens, last, axis=1)[:, 0]
    return self._search(
        step, started["cache"], rows, length, rng, start_id=first,
        context=constraints.context_of(
            tokens, jnp.arange(tokens.shape[1])[None] <= last),
        alike=_positions(started["cache"]) - length)


def _positions(cache: Any) -> int:
  """How many positions a cache of `causal_lm.CausalLM` has."""
  return cache["decoder"]["cached_visible"].shape[-1]


def _instance(batch: Batch, tokens: Array) -> prompts.Instance:
  """What is known of the examples; the last input predicts the first target."""
  last = batch["decoder_target_positions"][:, :1]  # [B, 1]
  return prompts.Instance.of_batch(
      batch, jnp.arange(tokens.shape[1])[None] <= last)
