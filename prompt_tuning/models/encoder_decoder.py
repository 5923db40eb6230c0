"""What the engine asks of an encoder-decoder: loss, scores and predictions.

The counterpart of `t5x.models.EncoderDecoderModel` around the same Linen
module, with the same loss and the same decoding.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import prompts
from prompt_tuning.data import features as features_lib
from prompt_tuning.decoding import beam
from prompt_tuning.methods import interception
from prompt_tuning.models import language_model

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class EncoderDecoderModel(language_model.LanguageModel):
  """A Linen module with its vocabularies, loss and decoding.

  Attributes:
    module: has `encode`, `decode`, `hidden` and `to_logits` as `models.t5`;
      and `features`, if its batches are made otherwise.
    input_vocabulary: of the inputs.
    others: see `language_model.LanguageModel`.
  """

  module: nn.Module
  input_vocabulary: Any
  output_vocabulary: Any
  label_smoothing: float = 0.0
  z_loss: float = 1e-4
  loss_normalizing_factor: float | str | None = None
  decode_fn: Callable[..., tuple[Array, Array]] = functools.partial(
      beam.beam_search, num_beams=1)
  delta: interception.Delta | None = None
  instance_encoder: Any = None

  @property
  def features(self) -> features_lib.Encoding:
    """How its batches are made."""
    return getattr(self.module, "features", features_lib.EncoderDecoder())

  def check_lengths(self, lengths: Mapping[str, int]) -> None:
    """See `LanguageModel.check_lengths`."""
    if not hasattr(self.module.config, "max_positions"):
      return
    inputs, targets = (
        jax.ShapeDtypeStruct((1, lengths[name]), jnp.int32)
        for name in ("inputs", "targets"))
    jax.eval_shape(
        functools.partial(
            self._init, enable_dropout=False,
            instance=self._unknown_instance()),
        jax.random.PRNGKey(0), inputs, targets)

  def init(self, rng: Array) -> Params:
    """Every variable of the module, for one example of one token."""
    one = jnp.ones((1, 1), jnp.int32)
    return self._init(
        rng, one, one, enable_dropout=False,
        instance=self._unknown_instance())

  def hidden(
      self, params: Params, batch: Batch, dropout_rng: Array | None = None
  ) -> Array:
    """See `LanguageModel.hidden`."""
    return self._apply(
        {"params": params}, batch["encoder_input_tokens"],
        batch["decoder_input_tokens"], method=self.module.hidden,
        enable_dropout=dropout_rng is not None,
        instance=prompts.Instance.of_batch(batch),
        rngs=None if dropout_rng is None else {"dropout": dropout_rng})

  def decodes(
      self, params: Params, batch: Batch, rng: Array | None = None
  ) -> tuple[Array, Array]:
    """See `LanguageModel.decodes`."""
    inputs = batch["encoder_input_tokens"]
    rows, length = batch["decoder_target_tokens"].shape
    encoded = self._apply(
        {"params": params}, inputs, enable_dropout=False,
        instance=prompts.Instance.of_batch(batch), method=self.module.encode)

    def step(tokens: Array, cache) -> tuple[Array, Any]:
      # Hypotheses of one example adjoin, and read the same encodings.
      logits, variables = self._apply(
          {"params": params, "cache": cache}, encoded, inputs, tokens,
          enable_dropout=False, decode=True, max_decode_length=length,
          mutable=["cache"], method=self.module.decode)
      return logits[:, 0], variables["cache"]

    start = self.features.start_id  # 0 is every search's own
    return self._search(
        step, self._empty_cache(inputs, rows, length), rows, length, rng,
        start_id=jnp.full(rows, start) if start else None)

  def _empty_cache(self, inputs: Array, rows: int, length: int):
    targets = jnp.ones((rows, length), jnp.int32)
    shapes = jax.eval_shape(lambda: self._init(
        jax.random.PRNGKey(0), inputs, targets,
        enable_dropout=False, decode=True,
        instance=self._unknown_instance(rows))["cache"])
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
