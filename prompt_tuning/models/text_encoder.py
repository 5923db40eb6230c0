"""Bidirectional encoders: BERT, MiniLM, RoBERTa, CodeBERT, CodeSage.

Families differ in their `Config` and in how hidden states become one vector a
text; which file a weight comes from is `checkpoints.families`. Attention is
that of decoder-only models with a mask of padding alone.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import errors, prompts
from prompt_tuning.models import causal_attention, layers, stack

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and options of one encoder.

  Attributes:
    vocab_size: V, rows of the embedding table.
    embed_dim: H.
    num_layers: L.
    num_heads: N.
    head_dim: D.
    mlp_dim: F.
    max_positions: the longest text, prompt included.
    position_offset: rows of the position table before that of the first token;
      RoBERTa's are its padding id + 1, which fairseq kept free for padding.
    num_token_types: rows of the table of token types, of which a single text
      is the first; 0: there is none.
    norm_first: norms stand before attention and MLP, and one at the end, as in
      GPT-2 (CodeSage); else behind their residual sums, and one behind the
      embeddings, as in BERT.
    norm_epsilon: added to the variance.
    mlp_activations: see `layers.Mlp`.
    dtype: of the activations; parameters have the dtype they are given in.
    scan_layers: see `t5.Config`.
    remat: see `t5.Config`.
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  max_positions: int = 512
  position_offset: int = 0
  num_token_types: int = 2
  norm_first: bool = False
  norm_epsilon: float = 1e-12
  mlp_activations: tuple[str, ...] = ("gelu_exact",)
  dtype: jnp.dtype = jnp.float32
  scan_layers: bool = False
  remat: str = "none"

  # What `causal_attention.SelfAttention` reads besides, the same in all.
  qkv_bias: ClassVar[bool] = True
  attention_out_bias: ClassVar[bool] = True
  attention_scale: ClassVar[None] = None
  dropout_rate: ClassVar[float] = 0.0

  def __post_init__(self):
    stack.check_options(self)

  @property
  def kv_heads(self) -> int:
    """K, which is N."""
    return self.num_heads


# ---------------------------------------------------- one vector for each text


def first_token(hidden: Array, mask: Array) -> Array:
  """The first token's state, `<s>` of RoBERTa: [B, T, H] -> [B, H]."""
  return _at(hidden, jnp.argmax(mask, axis=1))


def last_token(hidden: Array, mask: Array) -> Array:
  """The last token's state, which has read the whole text: [B, H]."""
  length = mask.shape[1]
  return _at(hidden, length - 1 - jnp.argmax(mask[:, ::-1], axis=1))


def mean(hidden: Array, mask: Array) -> Array:
  """The mean over the text's tokens (Reimers & Gurevych 2019): [B, H]."""
  weights = mask.astype(jnp.float32)[..., None]  # [B, T, 1]
  total = jnp.sum(hidden.astype(jnp.float32) * weights, axis=1)
  return total / jnp.maximum(jnp.sum(weights, axis=1), 1.0)


def normalized_mean(hidden: Array, mask: Array) -> Array:
  """`mean` at length 1: [B, H]."""
  x = mean(hidden, mask)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


POOLINGS = {
    function.__name__: function
    for function in (first_token, last_token, mean, normalized_mean)}


def pooled(hidden: Array, mask: Array, pooling: str) -> Array:
  """One float32 vector for each text.

  Args:
    hidden: [B, T, H].
    mask: [B, T] bool, False is padding.
    pooling: a name in `POOLINGS`.

  Returns:
    [B, H].

  Raises:
    UserError: if there is no such pooling.
  """
  if pooling not in POOLINGS:
    raise errors.UserError(
        f"The pooling of an encoder is {pooling!r}; it can be "
        f"{', '.join(POOLINGS)}.")
  return POOLINGS[pooling](hidden, mask).astype(jnp.float32)


def _at(hidden: Array, places: Array) -> Array:
  return jnp.take_along_axis(hidden, places[:, None, None], axis=1)[:, 0]


# ---------------------------------------------------------------- the networks


class Layer(nn.Module):
  """Attention and MLP with their norms; see `stack.run`."""

  config: Config

  @nn.compact
  def __call__(self, x, own, bias):
    del own  # no layer has anything of its own besides its parameters
    config = self.config
    norm = functools.partial(
        layers.LayerNorm, config.norm_epsilon, config.dtype)
    attention = causal_attention.SelfAttention(config, name="attention")
    mlp = layers.Mlp(
        config.mlp_dim, config.mlp_activations, config.dtype, use_bias=True,
        name="mlp")

    def attended(h):
      return attention(h, None, None, (bias, None), None)[0]

    if config.norm_first:
      x = x + attended(norm(name="pre_attention_layer_norm")(x))
      return x + mlp(norm(name="pre_mlp_layer_norm")(x)), None
    x = norm(name="post_attention_layer_norm")(x + attended(x))
    return norm(name="post_mlp_layer_norm")(x + mlp(x)), None


class Stack(nn.Module):
  """The layers, the norm behind them if there is one, and the prompt's place.

  Attributes:
    config: sizes and options.
    prompt_factory: see `Encoder`.
  """

  config: Config
  prompt_factory: Callable[[], nn.Module] | None = None

  def setup(self):
    if self.prompt_factory is not None:
      self.prompt = self.prompt_factory()
    if self.config.norm_first:
      self.encoder_norm = layers.LayerNorm(
          self.config.norm_epsilon, self.config.dtype)

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    """Embedded text [B, T, H] and its mask [B, T] -> [B, T, H]."""
    config = self.config
    x, _ = stack.run(
        Layer, config, config.num_layers, x, None, (layers.key_mask(mask),),
        ())
    return self.encoder_norm(x) if config.norm_first else x


class Encoder(nn.Module):
  """Hidden states of every token; subclasses say what is made of them.

  Attributes:
    config: sizes and options.
    prompt_factory: makes the module that puts a prompt among the embedded
      tokens, called with (tokens [B, T], embedded [B, T, H]).
  """

  config: Config
  prompt_factory: Callable[[], nn.Module] | None = None

  def setup(self):
    config = self.config

    def table(rows, *axes):
      return layers.Embed(rows, config.embed_dim, config.dtype, *axes)

    self.token_embedder = table(config.vocab_size)
    self.position_embedder = table(
        config.max_positions + config.position_offset, ("length", "embed"))
    if config.num_token_types:
      self.token_type_embedder = table(
          config.num_token_types, ("token_types", "embed"))
    if not config.norm_first:
      self.embedding_norm = layers.LayerNorm(config.norm_epsilon, config.dtype)
    self.encoder = Stack(config, self.prompt_factory)

  def hidden(
      self, tokens: Array, mask: Array,
      instance: prompts.Instance | None = None,
  ) -> Array:
    """Runs the layers on one text a row, behind the prompt if there is one.

    Positions are counted over the text, so that padding may stand on either
    side of it. The prompt's come first, as if it were text.

    Args:
      tokens: [B, T].
      mask: [B, T] bool, False is padding.
      instance: for prompts that differ by example.

    Returns:
      [B, P + T, H].

    Raises:
      UserError: if the text and the prompt are longer than the positions.
    """
    config = self.config
    x = self.token_embedder(tokens)
    mask = mask.astype(bool)
    if self.prompt_factory is not None:
      x = prompts.called(
          self.encoder.prompt, tokens, x, instance).astype(x.dtype)
      extra = x.shape[1] - mask.shape[1]
      mask = jnp.pad(mask, ((0, 0), (extra, 0)), constant_values=True)
    if x.shape[1] > config.max_positions:
      raise errors.UserError(
          f"A text of {x.shape[1]} tokens, prompt included, is longer than "
          f"the encoder's {config.max_positions} positions: lower "
          "TASK_FEATURE_LENGTHS or PROMPT_LENGTH.")
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    x = x + self.position_embedder(positions + config.position_offset)
    if config.num_token_types:
      x = x + self.token_type_embedder(jnp.zeros((1, 1), jnp.int32))
    if not config.norm_first:
      x = self.embedding_norm(x)
    return self.encoder(x, mask)


class TextEncoder(Encoder):
  """One vector for each text.

  Attributes:
    pooling: how it is made of the hidden states, a name in `POOLINGS`.
  """

  pooling: str = "mean"

  def __call__(self, tokens: Array, mask: Array) -> Array:
    """Tokens [B, T] and their mask [B, T] -> [B, H] float32."""
    return pooled(self.hidden(tokens, mask), mask.astype(bool), self.pooling)
