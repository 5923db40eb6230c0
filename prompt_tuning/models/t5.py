"""T5 as Linen modules: 1.0, 1.1, mT5 and ByT5 differ in their `Config` alone.

Signatures, parameter names and logical axes are T5X's, so that its checkpoints
load one to one and a stock `t5x.models.EncoderDecoderModel` drives
`EncoderDecoder`. Encoder: Raffel et al. 2020 (arXiv 1910.10683); gated MLP and
untied logits of 1.1: Shazeer 2020 (arXiv 2002.05202).
"""

from collections.abc import Callable, Mapping
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import errors, prompts
from prompt_tuning.models import layers, stack

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and options of one T5.

  Attributes:
    vocab_size: rows of the embedding table (32128 for T5, 250112 for mT5).
    embed_dim: H.
    num_heads: N.
    head_dim: D; N * D need not be H.
    mlp_dim: F.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    mlp_activations: `("relu",)` for 1.0, `("gelu", "linear")` from 1.1 on.
    tie_logits: whether the embedding table also makes the logits (1.0).
    relpos_num_buckets: buckets of the relative position bias.
    relpos_max_distance: distance from which all keys share a bucket.
    dtype: of the activations; parameters have the dtype they are given in.
    dropout_rate: used only in calls with `enable_dropout`.
    scan_layers: one traced layer over stacked parameters (`layers` instead of
      `layers_0`, …; leading axis L): compile time stops growing with depth.
    remat: `"none"`, `"dots"` (keep only matrix products) or `"full"`; what
      backpropagation recomputes to save memory. Never changes the numbers.
  """

  vocab_size: int
  embed_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  mlp_activations: tuple[str, ...] = ("gelu", "linear")
  tie_logits: bool = False
  relpos_num_buckets: int = 32
  relpos_max_distance: int = 128
  dtype: jnp.dtype = jnp.float32
  dropout_rate: float = 0.0
  scan_layers: bool = False
  remat: str = "none"

  def __post_init__(self):
    stack.check_options(self)


def _norm(config: Config, name: str) -> layers.RootMeanSquareNorm:
  return layers.RootMeanSquareNorm(dtype=config.dtype, name=name)


def _attention(config: Config, name: str) -> layers.Attention:
  return layers.Attention(
      config.num_heads, config.head_dim, config.dtype, name=name)


def _mlp(config: Config) -> layers.Mlp:
  return layers.Mlp(
      config.mlp_dim, config.mlp_activations, config.dtype, name="mlp")


class EncoderLayer(nn.Module):
  """Self-attention and MLP, each behind its norm; see `stack.run`."""

  config: Config
  prompt_factory: Callable[[], nn.Module] | None = None

  def setup(self):
    if self.prompt_factory is not None:
      self.prompt = self.prompt_factory()

  @nn.compact
  def __call__(
      self,
      x: Array,
      own: tuple[tuple[Array, Array] | None, Mapping[str, Array]],
      bias: Array,
      prefix_bias: Array | None,
  ):
    prefix, keep = own
    if self.prompt_factory is not None:
      x = self.prompt(None, x).astype(x.dtype)
    h = _norm(self.config, "pre_attention_layer_norm")(x)
    h = _attention(self.config, "attention")(
        h, h, bias, keep=keep.get("attention"), prefix=prefix,
        prefix_bias=prefix_bias)
    x = x + layers.masked(h, keep.get("attention_out"))
    h = _norm(self.config, "pre_mlp_layer_norm")(x)
    h = _mlp(self.config)(h, keep.get("mlp"))
    return x + layers.masked(h, keep.get("mlp_out")), None


class DecoderLayer(nn.Module):
  """Causal self-attention, cross-attention, MLP; see `stack.run`."""

  config: Config

  @nn.compact
  def __call__(
      self,
      x: Array,
      own: tuple[
          tuple[Array, Array] | None, tuple[Array, Array] | None,
          Mapping[str, Array]],
      encoded: Array,
      self_bias: Array,
      prefix_bias: Array | None,
      cross_bias: Array,
      decode: bool = False,
  ):
    prefix, cross_prefix, keep = own
    h = _norm(self.config, "pre_self_attention_layer_norm")(x)
    h = _attention(self.config, "self_attention")(
        h, h, self_bias, decode=decode, keep=keep.get("attention"),
        prefix=prefix, prefix_bias=prefix_bias)
    x = x + layers.masked(h, keep.get("attention_out"))
    h = _norm(self.config, "pre_cross_attention_layer_norm")(x)
    h = _attention(self.config, "encoder_decoder_attention")(
        h, encoded, cross_bias, keep=keep.get("cross"), prefix=cross_prefix)
    x = x + layers.masked(h, keep.get("cross_out"))
    h = _norm(self.config, "pre_mlp_layer_norm")(x)
    h = _mlp(self.config)(h, keep.get("mlp"))
    return x + layers.masked(h, keep.get("mlp_out")), None


class Encoder(nn.Module):
  """Tokens [B, T] -> encodings [B, P + T, H], P = 0 without a prompt.

  Attributes:
    config: sizes and options.
    token_embedder: shared with the decoder.
    prompt_factory: makes the module that puts the prompt into the embedded
      input; called with (tokens [B, T], embedded [B, T, H]), gives
      [B, P + T, H].
    prefix_factory: see `EncoderDecoder`.
    layer_prompt_factory: see `EncoderDecoder`.
    mask_factory: see `EncoderDecoder`.
  """

  config: Config
  token_embedder: layers.Embed
  prompt_factory: Callable[[], nn.Module] | None = None
  prefix_factory: Callable[[], nn.Module] | None = None
  layer_prompt_factory: Callable[[], nn.Module] | None = None
  mask_factory: Callable[[], Callable[[Array], Array]] | None = None

  def setup(self):
    if self.prompt_factory is not None:
      self.prompt = self.prompt_factory()
    if self.prefix_factory is not None:
      self.prefix = self.prefix_factory()

  @nn.compact
  def __call__(
      self, tokens: Array, enable_dropout: bool = False,
      instance: prompts.Instance | None = None,
  ) -> Array:
    config = self.config
    x = self.token_embedder(tokens)  # [B, T, H]
    if self.prompt_factory is not None:
      x = prompts.called(self.prompt, tokens, x, instance)  # [B, P + T, H]
      x = x.astype(config.dtype)
    # The original's order: dropout comes after the prompt, so it hits it too.
    x = layers.dropout(x, config.dropout_rate, enable_dropout)
    positions = jnp.arange(x.shape[1])
    relpos = layers.RelativePositionBias(
        config.num_heads, True, config.relpos_num_buckets,
        config.relpos_max_distance, name="relpos_bias")
    bias = relpos(positions, positions) + self._mask(tokens, x.shape[1])
    prefix = prefix_bias = None
    if self.prefix_factory is not None:
      prefix = self.prefix(config, config.num_encoder_layers)
      prefix_bias = relpos(positions, _before(prefix))
    x, _ = stack.run(
        EncoderLayer, config, config.num_encoder_layers, x,
        (prefix, layers.stack_dropout(
            self, config, config.num_encoder_layers, x, enable_dropout,
            {"attention": x.shape[1] + layers.prefix_length(prefix)})),
        (bias, prefix_bias), (), prompt_factory=self.layer_prompt_factory)
    x = _norm(config, "encoder_norm")(x)
    return layers.dropout(x, config.dropout_rate, enable_dropout)

  def _mask(self, tokens: Array, length: int) -> Array:
    """Additive, broadcastable to [B, N, P + T, P + T]."""
    if self.mask_factory is None:
      return layers.key_mask(visible(tokens, length))
    sees = self.mask_factory()(tokens)  # [B, 1, P + T, P + T]
    if sees.shape[-1] != length:
      raise errors.UserError(
          f"The encoder's mask is for {sees.shape[-1]} positions, but with the "
          f"prompt there are {length}: give it the prompt's length "
          "(prompt_encoder_attention_mask.prompt_length).")
    return jnp.where(sees > 0, 0.0, layers.MASKED)


def visible(tokens: Array, length: int) -> Array:
  """Which of `length` = P + T positions are prompt or text: [B, P + T] bool.

  Wherever the prompt stands among right-padded tokens, the positions in use
  are the first P + (number of tokens): so prompt positions count as text in
  front, and padding stays behind.
  """
  prompt = jnp.ones((tokens.shape[0], length - tokens.shape[1]), bool)
  return jnp.concatenate([prompt, tokens > 0], axis=1)


def _before(prefix: tuple[Array, Array]) -> Array:
  """Positions -P to -1 of keys and values [L, 1, N, P, D]."""
  return jnp.arange(-layers.prefix_length(prefix), 0)


class Decoder(nn.Module):
  """Target tokens and encodings -> hidden states [B, T, H], and logits.

  Attributes:
    config: sizes and options.
    token_embedder: shared with the encoder.
    prefix_factory: see `EncoderDecoder`.
    cross_prefix_factory: see `EncoderDecoder`.
  """

  config: Config
  token_embedder: layers.Embed
  prefix_factory: Callable[[], nn.Module] | None = None
  cross_prefix_factory: Callable[[], nn.Module] | None = None

  def setup(self):
    if self.prefix_factory is not None:
      self.prefix = self.prefix_factory()
    if self.cross_prefix_factory is not None:
      self.cross_prefix = self.cross_prefix_factory()
    if not self.config.tie_logits:
      self.logits_dense = layers.Dense(
          self.config.vocab_size, ("embed", "vocab"), jnp.float32)

  @nn.compact
  def __call__(
      self,
      encoded: Array,
      encoder_is_token: Array,
      tokens: Array,
      *,
      decode: bool = False,
      enable_dropout: bool = False,
      max_decode_length: int | None = None,
  ) -> Array:
    config = self.config
    x = self.token_embedder(tokens)  # [B, T, H]
    x = layers.dropout(x, config.dropout_rate, enable_dropout)
    relpos = layers.RelativePositionBias(
        config.num_heads, False, config.relpos_num_buckets,
        config.relpos_max_distance, name="relpos_bias")
    length = tokens.shape[1]
    stepping = decode and self.has_variable("cache", "cache_index")
    if decode:
      index = self.variable("cache", "cache_index", jnp.zeros, (), jnp.int32)
    if stepping:
      if max_decode_length is None:
        raise ValueError("decode=True needs max_decode_length, the cache's.")
      positions = index.value[None]
      self_bias = relpos(positions, jnp.arange(max_decode_length))
      index.value = index.value + 1
    else:
      positions = jnp.arange(length)
      self_bias = relpos(positions, positions) + layers.causal_mask(length)
    prefix = prefix_bias = cross_prefix = None
    if self.prefix_factory is not None:
      prefix = self.prefix(config, config.num_decoder_layers)
      prefix_bias = relpos(positions, _before(prefix))
    if self.cross_prefix_factory is not None:
      cross_prefix = self.cross_prefix(config, config.num_decoder_layers)
    x, _ = stack.run(
        DecoderLayer, config, config.num_decoder_layers, x,
        (prefix, cross_prefix, layers.stack_dropout(
            self, config, config.num_decoder_layers, x, enable_dropout, {
                "attention": length + layers.prefix_length(prefix),
                "cross": encoded.shape[1] + layers.prefix_length(
                    cross_prefix)})),
        (encoded, self_bias, prefix_bias, layers.key_mask(encoder_is_token)),
        (decode,))
    x = _norm(config, "decoder_norm")(x)
    return layers.dropout(x, config.dropout_rate, enable_dropout)

  def to_logits(self, hidden: Array) -> Array:
    """[B, T, H] -> [B, T, V] float32."""
    if self.config.tie_logits:
      # T5 1.0 scales by 1/sqrt(H) because its table has unit variance.
      return self.token_embedder.attend(
          hidden * self.config.embed_dim**-0.5)
    return self.logits_dense(hidden)


class EncoderDecoder(nn.Module):
  """T5 with doors for prompts.

  Attributes:
    config: sizes and options.
    prompt_factory: see `Encoder`; None is the plain model.
    encoder_prefix_factory: makes the module that gives keys and values
      [L, 1, N, P, D] for the encoder's self-attention, called with the config
      and L; they stand P to 1 positions before the first input.
    decoder_prefix_factory: likewise for the decoder's self-attention.
    cross_prefix_factory: likewise for its cross-attention, which has no
      positions.
    layer_prompt_factory: makes the module that changes what goes into a layer
      of the encoder, one for each: (None, x [B, P + T, H]) -> the same shape.
    encoder_mask_factory: makes a function tokens [B, T] -> [B, 1, P + T,
      P + T], above 0 where a query of the encoder sees a key, such as
      `masks.prompt_encoder_attention_mask`; None is full visibility.
  """

  config: Config
  prompt_factory: Callable[[], nn.Module] | None = None
  encoder_prefix_factory: Callable[[], nn.Module] | None = None
  decoder_prefix_factory: Callable[[], nn.Module] | None = None
  cross_prefix_factory: Callable[[], nn.Module] | None = None
  layer_prompt_factory: Callable[[], nn.Module] | None = None
  encoder_mask_factory: Callable[[], Callable[[Array], Array]] | None = None

  @property
  def scan_layers(self) -> bool:  # T5X looks here for the cache's batch axis.
    return self.config.scan_layers

  @property
  def cache_batch_axis(self) -> int:
    """Where the cache's leaves have their rows."""
    return int(self.scan_layers)

  def setup(self):
    self.token_embedder = layers.Embed(
        self.config.vocab_size, self.config.embed_dim, self.config.dtype)
    self.encoder = Encoder(
        self.config, self.token_embedder, self.prompt_factory,
        self.encoder_prefix_factory, self.layer_prompt_factory,
        self.encoder_mask_factory)
    self.decoder = Decoder(
        self.config, self.token_embedder, self.decoder_prefix_factory,
        self.cross_prefix_factory)

  def encode(
      self,
      encoder_input_tokens: Array,
      encoder_segment_ids: Array | None = None,
      *,
      enable_dropout: bool = True,
      instance: prompts.Instance | None = None,
  ) -> Array:
    """Tokens [B, T] -> encodings [B, P + T, H].

    Args:
      encoder_input_tokens: [B, T].
      encoder_segment_ids: must be None.
      enable_dropout: needs the rng `dropout`.
      instance: for prompts that differ by example.
    """
    _refuse_packing(encoder_segment_ids)
    return self.encoder(encoder_input_tokens, enable_dropout, instance)

  def decode(
      self,
      encoded: Array,
      encoder_input_tokens: Array,
      decoder_input_tokens: Array,
      decoder_target_tokens: Array | None = None,
      encoder_segment_ids: Array | None = None,
      decoder_segment_ids: Array | None = None,
      decoder_positions: Array | None = None,
      *,
      enable_dropout: bool = True,
      decode: bool = False,
      max_decode_length: int | None = None,
  ) -> Array:
    """Logits of the next target token.

    Args:
      encoded: [B, P + T, H] from `encode`; P is read off its shape.
      encoder_input_tokens: [B, T], for the padding mask.
      decoder_input_tokens: [B, U] targets shifted right; U = 1 when decoding.
      decoder_target_tokens: unused; T5X passes it. Padding targets need no
        mask: they come last, so no real target sees them.
      encoder_segment_ids: must be None.
      decoder_segment_ids: must be None.
      decoder_positions: must be None.
      enable_dropout: needs the rng `dropout`.
      decode: one step with the collection `cache`.
      max_decode_length: the cache's length, needed when decoding.

    Returns:
      [B, U, V] float32.

    Raises:
      ValueError: on packed examples.
    """
    del decoder_target_tokens
    _refuse_packing(
        encoder_segment_ids, decoder_segment_ids, decoder_positions)
    return self.to_logits(self.decoder(
        encoded, visible(encoder_input_tokens, encoded.shape[1]),
        decoder_input_tokens, decode=decode, enable_dropout=enable_dropout,
        max_decode_length=max_decode_length))

  def hidden(
      self,
      encoder_input_tokens: Array,
      decoder_input_tokens: Array,
      *,
      enable_dropout: bool,
      instance: prompts.Instance | None = None,
  ) -> Array:
    """Tokens [B, T] and shifted targets [B, U] -> [B, U, H]."""
    encoded = self.encode(
        encoder_input_tokens, enable_dropout=enable_dropout,
        instance=instance)
    return self.decoder_hidden(
        encoded, encoder_input_tokens, decoder_input_tokens,
        enable_dropout=enable_dropout)

  def decoder_hidden(
      self,
      encoded: Array,
      encoder_input_tokens: Array,
      decoder_input_tokens: Array,
      *,
      enable_dropout: bool,
  ) -> Array:
    """Encodings [B, P + T, H] and shifted targets [B, U] -> [B, U, H]."""
    return self.decoder(
        encoded, visible(encoder_input_tokens, encoded.shape[1]),
        decoder_input_tokens, enable_dropout=enable_dropout)

  def to_logits(self, hidden: Array) -> Array:
    """[B, U, H] -> [B, U, V] float32."""
    return self.decoder.to_logits(hidden)

  def __call__(
      self,
      encoder_input_tokens: Array,
      decoder_input_tokens: Array,
      decoder_target_tokens: Array | None = None,
      encoder_segment_ids: Array | None = None,
      decoder_segment_ids: Array | None = None,
      encoder_positions: Array | None = None,
      decoder_positions: Array | None = None,
      *,
      enable_dropout: bool = True,
      decode: bool = False,
      instance: prompts.Instance | None = None,
  ) -> Array:
    """Tokens [B, T] and shifted targets [B, U] -> logits [B, U, V]."""
    _refuse_packing(encoder_positions)
    encoded = self.encode(
        encoder_input_tokens, encoder_segment_ids,
        enable_dropout=enable_dropout, instance=instance)
    return self.decode(
        encoded, encoder_input_tokens, decoder_input_tokens,
        decoder_target_tokens, encoder_segment_ids, decoder_segment_ids,
        decoder_positions, enable_dropout=enable_dropout, decode=decode,
        max_decode_length=decoder_input_tokens.shape[1])


def _refuse_packing(*packing):
  if any(x is not None for x in packing):
    raise ValueError(
        "Packed examples (segment ids, positions) are not supported: a prompt "
        "belongs to one example. Set utils.DatasetConfig.pack = False.")
