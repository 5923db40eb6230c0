"""RoBERTa as a masked language model: which word stands at `<mask>`?

Classification becomes a text with one `<mask>` in whose place a word for the
class belongs (Schick & Schütze 2021, arXiv 2001.07676; Gao et al. 2021,
2012.15723). The logits exist there alone, and a prompt among the embedded
tokens, LoRA or the whole network learn to get the word right.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from prompt_tuning import errors, prompts
from prompt_tuning.data import features as features_lib
from prompt_tuning.methods import interception
from prompt_tuning.models import language_model, layers, text_encoder

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]


class Head(nn.Module):
  """What stands between a hidden state and the table: [..., H] -> [..., H]."""

  config: text_encoder.Config

  def setup(self):
    config = self.config
    self.dense = layers.Dense(
        config.embed_dim, ("embed", "mlp"), config.dtype, use_bias=True)
    self.layer_norm = layers.LayerNorm(config.norm_epsilon, config.dtype)
    self.bias = partitioning.param_with_axes(
        "bias", nn.initializers.zeros, (config.vocab_size,), jnp.float32,
        axes=("vocab",))

  def __call__(self, hidden: Array) -> Array:
    return self.layer_norm(
        jax.nn.gelu(self.dense(hidden), approximate=False))


class MaskedLM(text_encoder.Encoder):
  """An encoder with the head that it was trained with."""

  def setup(self):
    super().setup()
    self.lm_head = Head(self.config)

  def __call__(
      self, tokens: Array, mask: Array, mask_positions: Array,
      instance: prompts.Instance | None = None,
  ) -> Array:
    """Logits of the word at each `<mask>`: [B, U, V] float32, see `at_mask`."""
    return self.to_logits(
        self.at_mask(tokens, mask, mask_positions, instance))

  def at_mask(
      self, tokens: Array, mask: Array, mask_positions: Array,
      instance: prompts.Instance | None = None,
  ) -> Array:
    """Hidden states where words are to be found.

    Args:
      tokens: [B, T].
      mask: [B, T] bool, False is padding.
      mask_positions: [B, U] of `<mask>`, counted in `tokens`. The prompt, if
        there is one, stands before them all.
      instance: for prompts that differ by example.

    Returns:
      [B, U, H].
    """
    hidden = self.hidden(tokens, mask, instance)
    extra = hidden.shape[1] - tokens.shape[1]  # token i of the text is at i + P
    return jnp.take_along_axis(
        hidden, (mask_positions + extra)[..., None], axis=1)

  def to_logits(self, hidden: Array) -> Array:
    """[B, U, H] -> [B, U, V] float32."""
    return (self.token_embedder.attend(self.lm_head(hidden))
            + self.lm_head.bias.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class MaskedLMModel(language_model.LanguageModel):
  """A `MaskedLM` with its vocabulary, loss and predictions.

  The loss is over the whole vocabulary. A task with labels to rank predicts
  the likeliest of their words alone.

  Attributes:
    module: see `MaskedLM`.
    vocabulary: of texts and words; has a mask.
    others: see `language_model.LanguageModel`.
  """

  module: nn.Module
  vocabulary: Any
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  loss_normalizing_factor: float | str | None = "num_tokens"
  delta: interception.Delta | None = None
  instance_encoder: Any = None

  @property
  def features(self) -> features_lib.Encoding:
    """How its batches are made."""
    return features_lib.MaskedLM(self.vocabulary.mask_id)

  @property
  def input_vocabulary(self):
    return self.vocabulary

  @property
  def output_vocabulary(self):
    return self.vocabulary

  def init(self, rng: Array) -> Params:
    """See `LanguageModel.init`."""
    one = jnp.ones((1, 1), jnp.int32)
    return self._init(
        rng, one, one, jnp.zeros_like(one), self._unknown_instance())

  def check_lengths(self, lengths: Mapping[str, int]) -> None:
    """See `language_model.LanguageModel.check_lengths`."""
    if lengths["targets"] != 1:
      raise errors.UserError(
          f"TASK_FEATURE_LENGTHS['targets'] is {lengths['targets']}, and a "
          "masked language model predicts one token: set it to 1.")
    # The module itself knows how long its prompt is; one layer traces fast.
    small = self.module.clone(
        config=dataclasses.replace(self.module.config, num_layers=1))
    text = jax.ShapeDtypeStruct((1, lengths["inputs"]), jnp.int32)
    place = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    jax.eval_shape(
        small.init, jax.random.PRNGKey(0), text, text, place,
        self._unknown_instance())

  def hidden(
      self, params: Params, batch: Batch, dropout_rng: Array | None = None
  ) -> Array:
    """See `LanguageModel.hidden`; U is 1.

    `dropout_rng` is for methods: the network has no dropout of its own.
    """
    return self._apply(
        {"params": params}, batch["encoder_input_tokens"],
        batch["encoder_input_mask"], batch["encoder_mask_positions"],
        prompts.Instance.of_batch(
            batch, batch["encoder_input_mask"].astype(bool)),
        method=self.module.at_mask,
        rngs=None if dropout_rng is None else {"dropout": dropout_rng})

  def decodes(
      self, params: Params, batch: Batch, rng: Array | None = None
  ) -> tuple[Array, Array]:
    """The likeliest token, [B, 1, 1], and its log-probability, [B, 1]."""
    del rng
    logits = jax.nn.log_softmax(self.logits(params, batch))  # [B, 1, V]
    return jnp.argmax(logits, axis=-1)[:, None], jnp.max(logits, axis=-1)

  def _read_by_head(self, params: Params) -> Params:
    return {name: params[name] for name in ("token_embedder", "lm_head")}
