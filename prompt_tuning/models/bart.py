"""BART (Lewis et al. 2019, arXiv 1910.13461) as Linen modules, with doors.

Norms stand behind the residual sums, positions are two learned tables, and the
token table makes the logits. Signatures are those of `models.t5`. Doors for
what is learned: a prompt among the encoder's embedded tokens, and keys and
values in front of those of each kind of attention (prefix tuning, arXiv
2101.00190, where all three have some).
"""

from collections.abc import Callable, Mapping
import dataclasses

import flax.linen as nn
from flax.linen import partitioning
import jax
from jax import lax
import jax.numpy as jnp

from prompt_tuning import errors, prompts
from prompt_tuning.data import features as features_lib
from prompt_tuning.models import layers, stack

Array = jax.Array
KeyValue = tuple[Array, Array]

# Rows of the position tables before that of the first token, never used.
POSITION_OFFSET = 2


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and options of one BART.

  Attributes:
    vocab_size: V, rows of the embedding table.
    embed_dim: H.
    num_heads: N.
    head_dim: D.
    mlp_dim: F.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    max_positions: the longest text of either side, prompt included.
    mlp_activations: see `layers.Mlp`.
    scale_embedding: whether embedded tokens are multiplied by sqrt(H).
    pad_id: the token that is padding; 0 begins a text.
    start_id: what the decoder reads first, BART's end-of-sequence.
    dtype: of the activations; parameters have the dtype they are given in.
    dropout_rate: used only in calls with `enable_dropout`.
    scan_layers: see `t5.Config`.
    remat: see `t5.Config`.
  """

  vocab_size: int
  embed_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  max_positions: int = 1024
  mlp_activations: tuple[str, ...] = ("gelu_exact",)
  scale_embedding: bool = False
  pad_id: int = 1
  start_id: int = 2
  dtype: jnp.dtype = jnp.float32
  dropout_rate: float = 0.0
  scan_layers: bool = False
  remat: str = "none"

  def __post_init__(self):
    stack.check_options(self)


def visible(tokens: Array, length: int, pad_id: int) -> Array:
  """Which of `length` = P + T positions are prompt or text: [B, P + T] bool.

  See `t5.visible`; padding may stand in front of the text, too, if the prompt
  stands in front of both.
  """
  prompt = jnp.ones((tokens.shape[0], length - tokens.shape[1]), bool)
  return jnp.concatenate([prompt, tokens != pad_id], axis=1)


def _norm(config: Config, name: str) -> layers.LayerNorm:
  return layers.LayerNorm(dtype=config.dtype, name=name)


def _attention(config: Config, name: str) -> layers.Attention:
  return layers.Attention(
      config.num_heads, config.head_dim, config.dtype, use_bias=True,
      scaled=True, name=name)


def _mlp(config: Config) -> layers.Mlp:
  return layers.Mlp(
      config.mlp_dim, config.mlp_activations, config.dtype, use_bias=True,
      name="mlp")


class EncoderLayer(nn.Module):
  """Self-attention and MLP, each with its norm behind; see `stack.run`."""

  config: Config

  @nn.compact
  def __call__(
      self, x: Array, own: tuple[KeyValue | None, Mapping[str, Array]],
      bias: Array):
    prefix, keep = own
    config = self.config
    h = _attention(config, "attention")(
        x, x, bias, keep=keep.get("attention"), prefix=prefix)
    x = _norm(config, "post_attention_layer_norm")(
        x + layers.masked(h, keep.get("attention_out")))
    h = _mlp(config)(x, keep.get("mlp"))
    return _norm(config, "post_mlp_layer_norm")(
        x + layers.masked(h, keep.get("mlp_out"))), None


class DecoderLayer(nn.Module):
  """Causal self-attention, cross-attention, MLP; see `stack.run`."""

  config: Config

  @nn.compact
  def __call__(
      self,
      x: Array,
      own: tuple[KeyValue | None, KeyValue | None, Mapping[str, Array]],
      encoded: Array,
      self_bias: Array,
      cross_bias: Array,
      decode: bool = False,
  ):
    prefix, cross_prefix, keep = own
    config = self.config
    h = _attention(config, "self_attention")(
        x, x, self_bias, decode=decode, keep=keep.get("attention"),
        prefix=prefix)
    x = _norm(config, "post_self_attention_layer_norm")(
        x + layers.masked(h, keep.get("attention_out")))
    h = _attention(config, "encoder_decoder_attention")(
        x, encoded, cross_bias, keep=keep.get("cross"), prefix=cross_prefix)
    x = _norm(config, "post_cross_attention_layer_norm")(
        x + layers.masked(h, keep.get("cross_out")))
    h = _mlp(config)(x, keep.get("mlp"))
    return _norm(config, "post_mlp_layer_norm")(
        x + layers.masked(h, keep.get("mlp_out"))), None


class _Side(nn.Module):
  """What both sides begin with: tokens and positions, embedded and normed."""

  config: Config
  token_embedder: layers.Embed

  def _embedded(self, tokens: Array) -> Array:
    x = self.token_embedder(tokens)
    return x * self.config.embed_dim**0.5 if self.config.scale_embedding else x

  def _placed(
      self, x: Array, start: Array | int, enable_dropout: bool) -> Array:
    """Adds the positions from `start` on: [B, T, H] -> the same shape."""
    config = self.config
    table = layers.Embed(
        config.max_positions + POSITION_OFFSET, config.embed_dim, config.dtype,
        axes=("length", "embed"), name="position_embedder")
    positions = start + POSITION_OFFSET + jnp.arange(x.shape[1])[None]
    x = _norm(config, "embedding_norm")(x + table(positions))
    return layers.dropout(x, config.dropout_rate, enable_dropout)


def _check_length(config: Config, length: int, side: str):
  if length > config.max_positions:
    raise errors.UserError(
        f"A text of {length} tokens, prompt included, is longer than the "
        f"{config.max_positions} positions of BART's {side}: lower "
        "TASK_FEATURE_LENGTHS or PROMPT_LENGTH.")


class Encoder(_Side):
  """Tokens [B, T] -> encodings [B, P + T, H], P = 0 without a prompt.

  Attributes:
    config: sizes and options.
    token_embedder: shared with the decoder.
    prompt_factory: see `EncoderDecoder`.
    prefix_factory: see `EncoderDecoder`.
  """

  prompt_factory: Callable[[], nn.Module] | None = None
  prefix_factory: Callable[[], nn.Module] | None = None

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
    x = self._embedded(tokens)  # [B, T, H]
    if self.prompt_factory is not None:
      # To prompts, padding is 0, which here begins a text: they change places.
      read = jnp.where(
          tokens == config.pad_id, 0,
          jnp.where(tokens == 0, config.pad_id, tokens))
      x = prompts.called(self.prompt, read, x, instance)  # [B, P + T, H]
      x = x.astype(config.dtype)
    _check_length(config, x.shape[1], "encoder")
    x = self._placed(x, 0, enable_dropout)
    prefix = (self.prefix(config, config.num_encoder_layers)
              if self.prefix_factory else None)
    mask = layers.key_mask(visible(tokens, x.shape[1], config.pad_id))
    x, _ = stack.run(
        EncoderLayer, config, config.num_encoder_layers, x,
        (prefix, layers.stack_dropout(
            self, config, config.num_encoder_layers, x, enable_dropout,
            {"attention": x.shape[1] + layers.prefix_length(prefix)})),
        (mask,), ())
    return x


class Decoder(_Side):
  """Target tokens and encodings -> hidden states [B, T, H].

  Attributes:
    config: sizes and options.
    token_embedder: shared with the encoder.
    prefix_factory: see `EncoderDecoder.decoder_prefix_factory`.
    cross_prefix_factory: see `EncoderDecoder`.
    prefix_has_positions: see `EncoderDecoder`.
  """

  prefix_factory: Callable[[], nn.Module] | None = None
  cross_prefix_factory: Callable[[], nn.Module] | None = None
  prefix_has_positions: bool = False

  def setup(self):
    if self.prefix_factory is not None:
      self.prefix = self.prefix_factory()
    if self.cross_prefix_factory is not None:
      self.cross_prefix = self.cross_prefix_factory()

  @nn.compact
  def __call__(
      self,
      encoded: Array,
      encoder_is_token: Array,
      tokens: Array,
      *,
      decode: bool = False,
      enable_dropout: bool = False,
  ) -> Array:
    config = self.config
    count = config.num_decoder_layers
    prefix = self.prefix(config, count) if self.prefix_factory else None
    cross_prefix = (
        self.cross_prefix(config, count) if self.cross_prefix_factory
        else None)
    start, length = 0, tokens.shape[1]
    if prefix is not None and self.prefix_has_positions:
      start = layers.prefix_length(prefix)
    _check_length(config, start + length, "decoder")
    self_bias = layers.causal_mask(length)
    if decode:
      stepping = self.has_variable("cache", "cache_index")
      index = self.variable("cache", "cache_index", jnp.zeros, (), jnp.int32)
      if stepping:
        start = start + index.value
        index.value = index.value + 1
        self_bias = None  # the cache's own mask
    x = self._placed(self._embedded(tokens), start, enable_dropout)
    x, _ = stack.run(
        DecoderLayer, config, count, x,
        (prefix, cross_prefix, layers.stack_dropout(
            self, config, count, x, enable_dropout, {
                "attention": length + layers.prefix_length(prefix),
                "cross": encoded.shape[1] + layers.prefix_length(
                    cross_prefix)})),
        (encoded, self_bias, layers.key_mask(encoder_is_token)), (decode,))
    return x


class EncoderDecoder(nn.Module):
  """BART with doors for prompts and prefixes.

  Attributes:
    config: sizes and options.
    prompt_factory: makes the module that puts the prompt into the encoder's
      embedded input; called with (tokens [B, T], embedded [B, T, H]), gives
      [B, P + T, H]. In those tokens 0 is padding, as everywhere in prompts.
    encoder_prefix_factory: makes the module that gives keys and values for the
      encoder's self-attention, called with the config: two [L, 1 or B, N, P,
      D]. They stand in front, and no token's position changes.
    decoder_prefix_factory: the same for the decoder's self-attention.
    cross_prefix_factory: the same for the decoder's attention to the encoder.
    prefix_has_positions: whether the decoder's tokens are at P, P + 1, …,
      behind its prefix, as PEFT has them; Li & Liang's begin at 0.
  """

  config: Config
  prompt_factory: Callable[[], nn.Module] | None = None
  encoder_prefix_factory: Callable[[], nn.Module] | None = None
  decoder_prefix_factory: Callable[[], nn.Module] | None = None
  cross_prefix_factory: Callable[[], nn.Module] | None = None
  prefix_has_positions: bool = False

  @property
  def features(self) -> features_lib.Encoding:
    """How batches are made, where not as T5's are."""
    return features_lib.FramedEncoderDecoder(
        self.config.pad_id, self.config.start_id)

  @property
  def cache_batch_axis(self) -> int:
    """Where the cache's leaves have their rows."""
    return int(self.config.scan_layers)

  def setup(self):
    config = self.config
    self.token_embedder = layers.Embed(
        config.vocab_size, config.embed_dim, config.dtype)
    self.encoder = Encoder(
        config, self.token_embedder, self.prompt_factory,
        self.encoder_prefix_factory)
    self.decoder = Decoder(
        config, self.token_embedder, self.decoder_prefix_factory,
        self.cross_prefix_factory, self.prefix_has_positions)
    # Some checkpoints hold one; nobody trains it.
    self.final_logits_bias = partitioning.param_with_axes(
        "final_logits_bias", nn.initializers.zeros, (1, config.vocab_size),
        jnp.float32, axes=(None, "vocab"))

  def encode(
      self,
      encoder_input_tokens: Array,
      *,
      enable_dropout: bool = True,
      instance: prompts.Instance | None = None,
  ) -> Array:
    """Tokens [B, T] -> encodings [B, P + T, H]; see `t5.EncoderDecoder`."""
    return self.encoder(encoder_input_tokens, enable_dropout, instance)

  def decode(
      self,
      encoded: Array,
      encoder_input_tokens: Array,
      decoder_input_tokens: Array,
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
      enable_dropout: needs the rng `dropout`.
      decode: one step with the collection `cache`.
      max_decode_length: the cache's length, which the cache tells by itself.

    Returns:
      [B, U, V] float32.
    """
    del max_decode_length
    return self.to_logits(self.decoder(
        encoded, self._visible(encoder_input_tokens, encoded),
        decoder_input_tokens, decode=decode, enable_dropout=enable_dropout))

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
    return self.decoder(
        encoded, self._visible(encoder_input_tokens, encoded),
        decoder_input_tokens, enable_dropout=enable_dropout)

  def to_logits(self, hidden: Array) -> Array:
    """[B, U, H] -> [B, U, V] float32."""
    bias = lax.stop_gradient(self.final_logits_bias.astype(jnp.float32))
    return self.token_embedder.attend(hidden) + bias

  def __call__(
      self,
      encoder_input_tokens: Array,
      decoder_input_tokens: Array,
      *,
      enable_dropout: bool = True,
      decode: bool = False,
      instance: prompts.Instance | None = None,
  ) -> Array:
    """Tokens [B, T] and shifted targets [B, U] -> logits [B, U, V]."""
    encoded = self.encode(
        encoder_input_tokens, enable_dropout=enable_dropout,
        instance=instance)
    return self.decode(
        encoded, encoder_input_tokens, decoder_input_tokens,
        enable_dropout=enable_dropout, decode=decode)

  def _visible(self, tokens: Array, encoded: Array) -> Array:
    return visible(tokens, encoded.shape[1], self.config.pad_id)
