"""Our prompts inside Flaxformer's T5.

The prompt modules, parameter names and sizes are those of `models.t5`; the
network around them is Flaxformer's, for a user who has methods built on it.
"""

from collections.abc import Callable
import functools

import flax.linen as nn
from flaxformer.architectures.t5 import t5_architecture
from flaxformer.components import (
  dense,
  embedding,
  layer_norm,
  relative_position_biases,
)
from flaxformer.components.attention import dense_attention
import jax
import jax.numpy as jnp

from prompt_tuning import errors
from prompt_tuning.models import t5

Array = jax.Array

_REMAT = {"none": "none", "dots": "minimal", "full": "full"}
_ATTENTION_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_KERNEL_INIT = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal")


class PromptEncoder(t5_architecture.Encoder):
  """Flaxformer's encoder: tokens [B, T] -> encodings [B, P + T, H].

  Attributes:
    prompt_factory: see `models.t5.Encoder`.
  """

  prompt_factory: Callable[[], nn.Module] | None = None

  def setup(self):
    super().setup()
    if self.prompt_factory is None:
      raise errors.UserError(
          "PromptEncoder.prompt_factory is None: bind it to %PROMPT, or take "
          "Flaxformer's own Encoder.")
    self.prompt = self.prompt_factory()

  def __call__(
      self,
      inputs: Array,
      inputs_positions: Array | None = None,
      encoder_mask: Array | None = None,
      *,
      segment_ids: Array | None = None,
      enable_dropout: bool = True,
  ) -> Array:
    """Encodes tokens behind a prompt; T5 has relative positions only.

    Args:
      inputs: [B, T] tokens.
      inputs_positions: must be None.
      encoder_mask: [B, 1, T, T], made for the tokens alone and so not used.
      segment_ids: must be None.
      enable_dropout: needs the rng `dropout`.

    Returns:
      [B, P + T, H].
    """
    del encoder_mask
    if segment_ids is not None or inputs_positions is not None:
      raise errors.UserError(
          "Packed examples (segment ids, positions) are not supported: a "
          "prompt belongs to one example. Set utils.DatasetConfig.pack = "
          "False.")
    x = self.prompt(inputs, self.embedder(token_ids=inputs))
    x = self.input_dropout(x, deterministic=not enable_dropout)
    is_token = t5.visible(inputs, x.shape[1])  # [B, P + T]
    return self.encode_from_continuous_inputs(
        x.astype(self.dtype),
        encoder_mask=dense_attention.make_attention_mask(
            is_token, is_token, dtype=self.dtype),
        logit_mask=is_token[..., None].astype(self.dtype),
        enable_dropout=enable_dropout)


class PromptEncoderDecoder(t5_architecture.EncoderDecoder):
  """Flaxformer's encoder-decoder around a `PromptEncoder`."""

  def decode(
      self, encoded: Array, encoder_input_tokens: Array, *arguments, **options
  ) -> Array:
    """As Flaxformer's; the decoder sees the prompt's encodings too."""
    with_prompt = t5.visible(encoder_input_tokens, encoded.shape[1])
    return super().decode(
        encoded, with_prompt.astype(jnp.int32), *arguments, **options)


def encoder_decoder(
    config: t5.Config, prompt_factory: Callable[[], nn.Module] | None = None
) -> t5_architecture.EncoderDecoder:
  """Flaxformer's T5 in the sizes and with the options of ours.

  Args:
    config: see `t5.Config`; Flaxformer cannot scan layers that share their
      relative position bias.
    prompt_factory: see `models.t5.EncoderDecoder`; None is the plain model.

  Returns:
    A module with the parameters of `models.t5.EncoderDecoder`.

  Raises:
    UserError: if `config.scan_layers` is set.
  """
  if config.scan_layers:
    raise errors.UserError(
        "SCAN_LAYERS is True, and Flaxformer cannot scan the layers of T5, "
        "which share their position bias: leave it out.")
  stack = {
      "layer_norm_factory": functools.partial(
          layer_norm.T5LayerNorm, dtype=config.dtype),
      "shared_relative_position_bias_factory": functools.partial(
          relative_position_biases.RelativePositionBiases,
          num_buckets=config.relpos_num_buckets,
          max_distance=config.relpos_max_distance,
          num_heads=config.num_heads, dtype=config.dtype,
          embedding_init=nn.initializers.variance_scaling(
              1.0, "fan_avg", "uniform")),
      "layer_remat": _REMAT[config.remat], "dtype": config.dtype}
  dropout = functools.partial(
      nn.Dropout, config.dropout_rate, broadcast_dims=(-2,))
  encoder = functools.partial(
      t5_architecture.Encoder if prompt_factory is None else functools.partial(
          PromptEncoder, prompt_factory=prompt_factory),
      layer_factory=functools.partial(_encoder_layer, config, dropout),
      num_layers=config.num_encoder_layers, input_dropout_factory=dropout,
      output_dropout_factory=dropout, **stack)
  decoder = functools.partial(
      t5_architecture.Decoder,
      layer_factory=functools.partial(_decoder_layer, config, dropout),
      num_layers=config.num_decoder_layers, dropout_factory=dropout,
      output_logits_factory=None if config.tie_logits else functools.partial(
          dense.DenseGeneral, config.vocab_size, use_bias=False,
          dtype=jnp.float32, kernel_init=_KERNEL_INIT,
          kernel_axis_names=("embed", "vocab")), **stack)
  whole = (t5_architecture.EncoderDecoder if prompt_factory is None
           else PromptEncoderDecoder)
  return whole(
      encoder_factory=encoder, decoder_factory=decoder, dtype=config.dtype,
      shared_token_embedder_factory=functools.partial(
          embedding.Embed, config.vocab_size, config.embed_dim,
          cast_input_dtype=jnp.int32, dtype=config.dtype,
          attend_dtype=jnp.float32,
          embedding_init=nn.initializers.normal(1.0)))


def _encoder_layer(config, dropout, *, shared_relative_position_bias):
  return t5_architecture.EncoderLayer(
      attention=_attention(config), mlp=_mlp(config), dropout_factory=dropout,
      layer_norm_factory=functools.partial(
          layer_norm.T5LayerNorm, dtype=config.dtype),
      shared_relative_position_bias=shared_relative_position_bias)


def _decoder_layer(config, dropout, *, shared_relative_position_bias):
  return t5_architecture.DecoderLayer(
      self_attention=_attention(config),
      encoder_decoder_attention=_attention(config), mlp=_mlp(config),
      dropout_factory=dropout,
      layer_norm_factory=functools.partial(
          layer_norm.T5LayerNorm, dtype=config.dtype),
      shared_relative_position_bias=shared_relative_position_bias)


def _attention(config):
  return dense_attention.MultiHeadDotProductAttention(
      num_heads=config.num_heads, head_dim=config.head_dim, use_bias=False,
      dtype=config.dtype, kernel_init=_ATTENTION_INIT,
      dropout_rate=config.dropout_rate)


def _mlp(config):
  return dense.MlpBlock(
      use_bias=False, intermediate_dim=config.mlp_dim,
      activations=config.mlp_activations, kernel_init=_KERNEL_INIT,
      intermediate_dropout_rate=config.dropout_rate, final_dropout_rate=0.0,
      dtype=config.dtype)
