"""Our prompts inside Flaxformer's T5, and in its decoder alone.

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

_PACKED = (
    "Packed examples (segment ids, positions) are not supported: a prompt "
    "belongs to one example. Set utils.DatasetConfig.pack = False.")
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
      raise errors.UserError(_PACKED)
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


class PromptDecoder(t5_architecture.Decoder):
  """Flaxformer's decoder; the cache has the prompt from its prefill on.

  Attributes:
    prompt_factory: see `models.t5.Encoder`.
  """

  prompt_factory: Callable[[], nn.Module] | None = None

  def setup(self):
    super().setup()
    self.prompt = self.prompt_factory()

  def __call__(
      self,
      encoder_outputs: None,
      decoder_input_tokens: Array,
      decoder_positions: None = None,
      decoder_mask: Array | None = None,
      *,
      enable_dropout: bool = True,
      decode: bool = False,
      **options,
  ) -> Array:
    """Tokens [B, T] -> logits [B, P + T, V]; of a step, [B, 1, V]."""
    x = self.embedder(token_ids=decoder_input_tokens, decode=decode)
    seen = dense_attention.get_decoder_logit_mask(
        decoder_input_tokens, self.dtype)  # [B, T, 1]
    if not decode:
      x = self.prompt(decoder_input_tokens, x)
      extra = x.shape[1] - decoder_input_tokens.shape[1]
      seen = jnp.pad(
          seen, ((0, 0), (extra, 0), (0, 0)), constant_values=1)
    x = self.input_dropout(x, deterministic=not enable_dropout)
    return self.decode_from_continuous_inputs(
        x.astype(self.dtype), encoder_outputs, decoder_mask=decoder_mask,
        logit_mask=seen, enable_dropout=enable_dropout, decode=decode,
        **options)


class PromptDecoderOnly(t5_architecture.DecoderOnly):
  """Flaxformer's decoder-only model around a `PromptDecoder`.

  Who calls it sees tokens alone: a stock `t5x.models.DecoderOnlyModel` can.

  Attributes:
    prompt_length: P.
  """

  prompt_length: int = 0

  def __call__(
      self,
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
  ) -> Array:
    """Logits of the next token.

    Args:
      decoder_input_tokens: [B, T], or [B, 1] of a step.
      decoder_target_tokens: [B, T], of which padding is not seen.
      decoder_segment_ids: must be None.
      decoder_positions: must be None.
      decoder_causal_attention: [B, T], 1 where inputs see each other; they and
        the prompt then see each other too.
      enable_dropout: needs the rng `dropout`.
      decode: a step on the cache; the first call makes it.
      max_decode_length: of the tokens.
      prefill: fill the cache.
      prefill_lengths: [B] tokens to keep.

    Returns:
      [B, T, V].
    """
    if decoder_segment_ids is not None or decoder_positions is not None:
      raise errors.UserError(_PACKED)
    extra = self.prompt_length
    if decode:
      if decoder_input_tokens.shape[1] > 1:  # these only say the cache's size
        decoder_input_tokens = jnp.pad(
            decoder_input_tokens, ((0, 0), (extra, 0)), constant_values=1)
      return self.decoder(
          None, decoder_input_tokens, enable_dropout=enable_dropout,
          decode=True, max_decode_length=(
              None if max_decode_length is None
              else max_decode_length + extra))

    def behind_prompt(row):
      return None if row is None else jnp.pad(
          row, ((0, 0), (extra, 0)), constant_values=1)

    mask = dense_attention.make_decoder_mask(
        decoder_target_tokens=behind_prompt(decoder_target_tokens),
        dtype=self.dtype,
        decoder_causal_attention=behind_prompt(decoder_causal_attention))
    logits = self.decoder(
        None, decoder_input_tokens, decoder_mask=mask,
        enable_dropout=enable_dropout, prefill=prefill,
        prefill_lengths=(
            None if prefill_lengths is None else prefill_lengths + extra))
    return logits[:, extra:]


def encoder_decoder(
    config: t5.Config, prompt_factory: Callable[[], nn.Module] | None = None,
    one_hot: bool = False,
) -> t5_architecture.EncoderDecoder:
  """Flaxformer's T5 in the sizes and with the options of ours.

  Args:
    config: see `t5.Config`; Flaxformer cannot scan layers that share their
      relative position bias.
    prompt_factory: see `models.t5.EncoderDecoder`; None is the plain model.
    one_hot: embed by a product with one-hot vectors, as the original does;
      slower on CPU, and the same numbers.

  Returns:
    A module with the parameters of `models.t5.EncoderDecoder`.

  Raises:
    UserError: if `config.scan_layers` is set.
  """
  stack = _stack(config)
  encoder = functools.partial(
      t5_architecture.Encoder if prompt_factory is None else functools.partial(
          PromptEncoder, prompt_factory=prompt_factory),
      layer_factory=functools.partial(_encoder_layer, config),
      num_layers=config.num_encoder_layers,
      input_dropout_factory=_dropout(config),
      output_dropout_factory=_dropout(config), **stack)
  whole = (t5_architecture.EncoderDecoder if prompt_factory is None
           else PromptEncoderDecoder)
  return whole(
      encoder_factory=encoder,
      decoder_factory=functools.partial(
          t5_architecture.Decoder,
          layer_factory=functools.partial(_decoder_layer, config, True),
          **_decoder(config), **stack),
      dtype=config.dtype,
      shared_token_embedder_factory=_embedder(config, one_hot))


def decoder_only(
    config: t5.Config,
    prompt_factory: Callable[[], nn.Module] | None = None,
    prompt_length: int = 0,
    one_hot: bool = False,
) -> t5_architecture.DecoderOnly:
  """T5's decoder as a language model of its own, by Flaxformer.

  Args:
    config: see `encoder_decoder`; the encoder's layers are not used.
    prompt_factory: see `models.t5.Encoder`; None is the plain model.
    prompt_length: P of what it makes.
    one_hot: see `encoder_decoder`.

  Returns:
    A module with the prompt at `decoder/prompt`.

  Raises:
    UserError: if `config.scan_layers` is set.
  """
  decoder = functools.partial(
      t5_architecture.Decoder if prompt_factory is None else functools.partial(
          PromptDecoder, prompt_factory=prompt_factory),
      layer_factory=functools.partial(_decoder_layer, config, False),
      token_embedder_factory=_embedder(config, one_hot),
      **_decoder(config), **_stack(config))
  if prompt_factory is None:
    return t5_architecture.DecoderOnly(decoder, dtype=config.dtype)
  return PromptDecoderOnly(
      decoder, dtype=config.dtype, prompt_length=prompt_length)


def _stack(config):
  """What encoders and decoders have in common."""
  if config.scan_layers:
    raise errors.UserError(
        "SCAN_LAYERS is True, and Flaxformer cannot scan the layers of T5, "
        "which share their position bias: leave it out.")
  return {
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


def _decoder(config):
  """What decoders have in common."""
  return {
      "num_layers": config.num_decoder_layers,
      "dropout_factory": _dropout(config),
      "output_logits_factory": None if config.tie_logits else
      functools.partial(
          dense.DenseGeneral, config.vocab_size, use_bias=False,
          dtype=jnp.float32, kernel_init=_KERNEL_INIT,
          kernel_axis_names=("embed", "vocab"))}


def _dropout(config):
  return functools.partial(
      nn.Dropout, config.dropout_rate, broadcast_dims=(-2,))


def _embedder(config, one_hot):
  return functools.partial(
      embedding.Embed, config.vocab_size, config.embed_dim,
      cast_input_dtype=jnp.int32, dtype=config.dtype,
      attend_dtype=jnp.float32, one_hot=one_hot,
      embedding_init=nn.initializers.normal(1.0))


def _encoder_layer(config, *, shared_relative_position_bias):
  return t5_architecture.EncoderLayer(
      attention=_attention(config), mlp=_mlp(config),
      dropout_factory=_dropout(config),
      layer_norm_factory=functools.partial(
          layer_norm.T5LayerNorm, dtype=config.dtype),
      shared_relative_position_bias=shared_relative_position_bias)


def _decoder_layer(config, has_encoder, *, shared_relative_position_bias):
  return t5_architecture.DecoderLayer(
      self_attention=_attention(config),
      encoder_decoder_attention=_attention(config) if has_encoder else None,
      mlp=_mlp(config), dropout_factory=_dropout(config),
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
