"""Decoder-only language models: GPT-2, Llama, Phi, CodeGen, BLOOM, ….

Families differ in their `Config` alone; which file a weight comes from is
`checkpoints.families`. Three doors for what is learned: a prompt among the
embedded tokens, one for every layer at its positions, and a prefix among the
keys and values of every layer.
"""

from collections.abc import Callable
import dataclasses
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import errors, prompts
from prompt_tuning.models import causal_attention, layers, rotary, stack
from prompt_tuning.train import prompts as train_prompts

Array = jax.Array

POSITIONS = ("rotary", "learned", "alibi")
NORMS = ("rms_norm", "layer_norm")


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and options of one decoder-only model.

  Attributes:
    vocab_size: V, rows of the embedding table.
    embed_dim: H.
    num_layers: L.
    num_heads: N.
    head_dim: D.
    mlp_dim: F.
    num_kv_heads: K, heads of keys and values; None is N.
    max_positions: the longest text, prompt included.
    positions: "rotary", "learned" (a table) or "alibi" (penalties).
    rotary_dim: how many features of a head are rotated; None is D.
    rotary_interleaved: see `rotary.rotate`.
    rope_theta: base of the rotation's frequencies.
    rope_scaling: see `rotary.RopeScaling`.
    norm: "rms_norm" or "layer_norm".
    norm_epsilon: added to the variance.
    mlp_activations: see `layers.Mlp`.
    qkv_bias: whether queries, keys and values have biases.
    attention_out_bias: whether attention's output has one.
    mlp_bias: whether the MLP has them.
    logits_bias: whether the logits have one.
    parallel_block: attention and MLP read the same norm, and both are added.
    embedding_norm: a norm after the embedding (BLOOM).
    tie_logits: the embedding table also makes the logits.
    sliding_window: how far back a token sees, itself included; None: all.
    attention_scale: of the scores; None is 1 / sqrt(D).
    fused_attention: whether to use `jax.nn.dot_product_attention` where it is
      exact; None: on a GPU in 16 bits.
    dtype: of the activations; parameters have the dtype they are given in.
    dropout_rate: in steps with an rng `dropout`, of the embedded input, the
      attention weights, and what a layer adds to the residual stream (GPT-2
      was trained with 0.1).
    scan_layers: see `t5.Config`.
    remat: see `t5.Config`.
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_kv_heads: int | None = None
  max_positions: int = 2048
  positions: str = "rotary"
  rotary_dim: int | None = None
  rotary_interleaved: bool = False
  rope_theta: float = 10000.0
  rope_scaling: rotary.RopeScaling | None = None
  norm: str = "rms_norm"
  norm_epsilon: float = 1e-5
  mlp_activations: tuple[str, ...] = ("silu", "linear")
  qkv_bias: bool = False
  attention_out_bias: bool = False
  mlp_bias: bool = False
  logits_bias: bool = False
  parallel_block: bool = False
  embedding_norm: bool = False
  tie_logits: bool = True
  sliding_window: int | None = None
  attention_scale: float | None = None
  fused_attention: bool | None = None
  dtype: jnp.dtype = jnp.float32
  dropout_rate: float = 0.0
  scan_layers: bool = False
  remat: str = "none"

  def __post_init__(self):
    stack.check_options(self)
    for name, known in (("positions", POSITIONS), ("norm", NORMS)):
      if getattr(self, name) not in known:
        raise errors.UserError(
            f"causal_lm.Config.{name} is {getattr(self, name)!r}; it can be "
            f"{', '.join(known)}.")
    if self.num_heads % self.kv_heads:
      raise errors.UserError(
          f"causal_lm.Config: {self.num_heads} query heads cannot share "
          f"{self.num_kv_heads} key and value heads evenly: correct NUM_HEADS "
          "or NUM_KV_HEADS.")

  @property
  def kv_heads(self) -> int:
    """K."""
    return self.num_kv_heads or self.num_heads


def _norm(config: Config, name: str | None = None) -> nn.Module:
  make = (layers.RootMeanSquareNorm if config.norm == "rms_norm"
          else layers.LayerNorm)
  return make(config.norm_epsilon, config.dtype, name=name)


class Layer(nn.Module):
  """Attention and MLP behind their norms; see `stack.run`."""

  config: Config
  prompt_factory: Callable[[], nn.Module] | None = None

  def setup(self):
    if self.prompt_factory is not None:
      self.prompt = self.prompt_factory()

  @nn.compact
  def __call__(self, x, prefix, angles, biases, cache_index, cache_length,
               begins_with_prompt):
    config = self.config
    if begins_with_prompt and self.prompt_factory is not None:
      x = self.prompt(None, x).astype(x.dtype)
    h = _norm(config, "pre_attention_layer_norm")(x)
    attended, own = causal_attention.SelfAttention(config, name="attention")(
        h, prefix, angles, biases, cache_index, cache_length)
    attended = layers.element_dropout(self, attended, config.dropout_rate)
    if not config.parallel_block:
      x = x + attended
      h = _norm(config, "pre_mlp_layer_norm")(x)
    mlp = layers.Mlp(
        config.mlp_dim, config.mlp_activations, config.dtype,
        use_bias=config.mlp_bias, name="mlp")(h)
    mlp = layers.element_dropout(self, mlp, config.dropout_rate)
    return (x + attended + mlp if config.parallel_block else x + mlp), own


class Decoder(nn.Module):
  """The layers, the last norm and the logits.

  Attributes:
    config: sizes and options.
    position_embedder: the table of learned positions, if they are.
    prompt_factory: see `CausalLM`.
    prefix_factory: see `CausalLM`.
    layer_prompt_factory: see `CausalLM`.
  """

  config: Config
  position_embedder: layers.Embed | None = None
  prompt_factory: Callable[[], nn.Module] | None = None
  prefix_factory: Callable[[], nn.Module] | None = None
  layer_prompt_factory: Callable[[], nn.Module] | None = None

  def setup(self):
    config = self.config
    if self.prompt_factory is not None:
      self.prompt = self.prompt_factory()
    if self.prefix_factory is not None:
      self.prefix = self.prefix_factory()
    self.decoder_norm = _norm(config)
    if not config.tie_logits:
      self.logits_dense = layers.Dense(
          config.vocab_size, ("embed", "vocab"), config.dtype,
          use_bias=config.logits_bias)

  @nn.compact
  def __call__(
      self,
      x: Array,
      positions: Array | None,
      visible: Array | None,
      prefix: Any = None,
      cache_length: int | None = None,
      begins_with_prompt: bool = False,
  ) -> tuple[Array, Any]:
    """Runs the layers.

    Args:
      x: [B, T, H].
      positions: [B, T] of the queries; None counts `visible`, after the
        prefix and what the cache holds.
      visible: [B, T] bool, False is padding; None is all, without a mask.
      prefix: keys and values [L, 1 or B, K, P, D], or a list of each layer's.
      cache_length: S: keep keys and values in the collection `cache`; the
        first call makes it, each call goes on where the last one ended.
      begins_with_prompt: whether the first positions of x are the prompt's,
        where the layers have prompts of their own.

    Returns:
      Hidden states before the last norm, and each layer's keys and values.
    """
    config = self.config
    before = _prefix_length(prefix)
    _check_length(config, before, x.shape[1])
    index = key_visible = None
    if cache_length is not None:
      index, key_visible, visible = self._remember(x, visible, cache_length)
    if positions is None:
      positions = self._positions(x, visible, key_visible, index) + before
    if self.position_embedder is not None:
      x = x + self.position_embedder(positions)
    x = layers.element_dropout(self, x, config.dropout_rate)
    angles = None
    if config.positions == "rotary":
      rates = rotary.frequencies(
          config.rotary_dim or config.head_dim, config.rope_theta,
          config.rope_scaling)
      angles = rotary.angles(positions, rates)
    biases = _biases(
        config, positions, visible, key_visible, index, before, x.shape[1],
        layers.drops(self, config.dropout_rate))
    return stack.run(
        Layer, config, config.num_layers, x, prefix,
        (angles, biases, index), (cache_length, begins_with_prompt),
        prompt_factory=self.layer_prompt_factory)

  def _positions(self, x, visible, key_visible, index) -> Array:
    """Each token's number among the visible ones: [1 or B, T]."""
    if visible is None:
      return jnp.arange(x.shape[1])[None]
    counted = jnp.maximum(jnp.cumsum(visible, axis=1) - 1, 0)
    if key_visible is None:
      return counted
    earlier = jnp.arange(key_visible.shape[1]) < index
    return counted + jnp.sum(
        key_visible & earlier, axis=1, keepdims=True)

  def _remember(self, x, visible, length):
    """Which of the cache's positions hold a token, now and so far."""
    if visible is None:
      visible = jnp.ones(x.shape[:2], bool)
    index = self.variable("cache", "cache_index", jnp.zeros, (), jnp.int32)
    start = index.value
    # The batch stands where it stands in the layers' leaves.
    shape = (x.shape[0], length)
    seen = self.variable(
        "cache", "cached_visible", jnp.zeros,
        (1, 1, *shape) if self.config.scan_layers else (1, *shape), bool)
    held = jax.lax.dynamic_update_slice(
        seen.value.reshape(shape), visible, (0, start))
    seen.value = held.reshape(seen.value.shape)
    index.value = start + x.shape[1]
    return start, held, visible


def _prefix_length(prefix: Any) -> int:
  """P of keys and values [L, 1 or B, K, P, D], or of a list of layers'."""
  return 0 if prefix is None else prefix[0][0].shape[2]


def _check_length(config: Config, before: int, length: int):
  if before + length > config.max_positions:
    raise errors.UserError(
        f"A text of {length} tokens" + (f" after {before} of the prompt"
                                        if before else "")
        + f" is longer than the model's {config.max_positions} positions: "
        "lower TASK_FEATURE_LENGTHS or PROMPT_LENGTH.")


def _biases(
    config, positions, visible, key_visible, index, before, length, drops):
  """Additive masks and penalties of the text and of the prefix.

  Broadcastable to [K, B, G, T, S]; None for the text is the fused kernel's own
  causal mask.
  """
  far = config.sliding_window is not None and (
      key_visible is not None
      or before + length > config.sliding_window)
  alibi = config.positions == "alibi"
  fused = config.fused_attention
  if fused is None:
    fused = (jax.default_backend() == "gpu"
             and jnp.dtype(config.dtype).itemsize == 2)
  if fused and visible is None and not far and not alibi and not drops:
    return None, None
  if index is None:
    key_positions = positions
    seen = layers.causal_mask(length)
    if visible is not None:
      seen = seen + layers.key_mask(visible)
  else:
    slots = jnp.arange(key_visible.shape[1])
    key_positions = before + jnp.maximum(
        jnp.cumsum(key_visible, axis=1) - 1, 0)
    causal = slots[None] <= index + jnp.arange(length)[:, None]  # [T, S]
    seen = jnp.where(
        causal & key_visible[:, None], 0.0, layers.MASKED)[:, None]
  prefix_positions = jnp.arange(before)[None]

  def penalty(keys):  # of [B, T] queries and [B, S] keys
    total = 0.0
    if alibi:
      slopes = causal_attention.alibi_slopes(config.num_heads)
      slopes = slopes.reshape(config.kv_heads, 1, -1, 1, 1)
      total = slopes * keys[:, None, None].astype(jnp.float32)
    if far:
      gone = positions[:, :, None] - keys[:, None] >= config.sliding_window
      total = total + jnp.where(gone, layers.MASKED, 0.0)[:, None]
    return total

  if not (alibi or far):
    return seen, None
  return (seen + penalty(key_positions),
          penalty(prefix_positions) if before else None)


class CausalLM(nn.Module):
  """A decoder-only model with doors for a prompt and a prefix.

  Attributes:
    config: sizes and options.
    prompt_factory: makes the module that puts a prompt among the embedded
      tokens, called with (tokens [B, T], embedded [B, T, H]).
    prefix_factory: makes the module that gives every layer's keys and values
      [L, 1, K, P, D], called with the config.
    layer_prompt_factory: makes the module that changes what goes into a layer
      at the prompt's positions, one for each: (None, x [B, P or P + T, H]) ->
      the same shape. Needs a prompt in front of everything else.
    share_prompt: run a prompt that all examples have in front once, with
      batch 1, and share its keys and values. Exact, since no position of it
      sees the text; a prompt of which that is not true is never shared.
  """

  config: Config
  prompt_factory: Callable[[], nn.Module] | None = None
  prefix_factory: Callable[[], nn.Module] | None = None
  layer_prompt_factory: Callable[[], nn.Module] | None = None
  share_prompt: bool = True

  @property
  def cache_batch_axis(self) -> int:
    """Where the cache's leaves have their rows: [(L,) K, B, S, D]."""
    return 1 + self.config.scan_layers

  def setup(self):
    config = self.config
    if self.prompt_factory and self.prefix_factory:
      raise errors.UserError(
          "PROMPT and PREFIX are both set: give the model one of them.")
    self.token_embedder = layers.Embed(
        config.vocab_size, config.embed_dim, config.dtype)
    if config.embedding_norm:
      self.embedding_norm = _norm(config)
    self.position_embedder = layers.Embed(
        config.max_positions, config.embed_dim, config.dtype,
        axes=("length", "embed")) if config.positions == "learned" else None
    self.decoder = Decoder(
        config, self.position_embedder, self.prompt_factory,
        self.prefix_factory, self.layer_prompt_factory)

  def __call__(self, tokens: Array, **options) -> Array:
    """Logits of the next token: [B, U or T, V] float32, see `hidden`."""
    return self.to_logits(self.hidden(tokens, **options))

  def hidden(
      self,
      tokens: Array,
      *,
      visible: Array | None = None,
      positions: Array | None = None,
      target_positions: Array | None = None,
      prefix: Any = None,
      instance: prompts.Instance | None = None,
  ) -> Array:
    """What the logits are made of.

    Args:
      tokens: [B, T].
      visible: [B, T] bool, False is padding; None if padding, if any, comes
        last, where causality hides it.
      positions: of all that is run, [B, T], or [B, P + T] with a prompt that
        is not shared; None counts the visible tokens, after the prompt.
      target_positions: [B, U] where logits are wanted, counted in `tokens`;
        None: everywhere.
      prefix: keys and values instead of the model's own prompt or prefix.
      instance: for prompts that differ by example.

    Returns:
      [B, U or T, H].
    """
    x, visible, prefix = self._inputs(tokens, visible, prefix, instance)
    extra = x.shape[1] - tokens.shape[1]  # position i of the text is at i + P
    hidden, _ = self.decoder(
        x, positions, visible, prefix, begins_with_prompt=prefix is None)
    if target_positions is None:
      hidden = hidden[:, extra:]
    else:
      hidden = jnp.take_along_axis(
          hidden, (target_positions + extra)[..., None], axis=1)
    return self.decoder.decoder_norm(hidden)

  def to_logits(self, hidden: Array) -> Array:
    """[B, U, H] -> [B, U, V] float32."""
    if self.config.tie_logits:
      return self.token_embedder.attend(hidden)
    return self.decoder.logits_dense(hidden).astype(jnp.float32)

  def prefill(
      self, tokens: Array, visible: Array, cache_length: int,
      prefix: Any = None, instance: prompts.Instance | None = None,
      *, longest: int | None = None,
  ) -> None:
    """Starts the collection `cache` with the inputs.

    Args:
      tokens: [B, T].
      visible: [B, T] bool.
      cache_length: positions for inputs and all that is decoded.
      prefix: from `shared_prefix`, if it gave one.
      instance: for prompts that differ by example.
      longest: how many of the cache's positions one text can use; None: all.
    """
    x, visible, prefix = self._inputs(tokens, visible, prefix, instance)
    extra = x.shape[1] - tokens.shape[1]
    _check_length(
        self.config, extra + _prefix_length(prefix), longest or cache_length)
    self.decoder(
        x, None, visible, prefix, cache_length + extra,
        begins_with_prompt=prefix is None)

  def decode(self, tokens: Array, prefix: Any = None) -> Array:
    """One step on the cache: tokens [B, 1] -> logits [B, V] float32."""
    held = self.decoder.get_variable("cache", "cached_visible")
    if prefix is None and self.prefix_factory is not None:
      prefix = self.decoder.prefix(self.config)
    hidden, _ = self.decoder(
        self._normed(self.token_embedder(tokens)), None, None, prefix,
        held.shape[-1])
    return self.to_logits(self.decoder.decoder_norm(hidden))[:, 0]

  def shared_prefix(self, tokens: Array) -> Any:
    """Keys and values that all examples share, or None if there are none.

    A prompt's come from running it: decoding does so once and keeps them.

    Args:
      tokens: [B, T]; only modules that look at examples use them.
    """
    return self._shared(tokens, self.token_embedder(tokens))

  def keys_and_values(self, tokens: Array) -> Any:
    """Each layer's own of a text [B, T] without prompt or prefix.

    Returns:
      Keys and values [L, B, K, T, D], or a list of each layer's.
    """
    x = self._normed(self.token_embedder(tokens))
    return self.decoder(x, None, None)[1]

  def _shared(self, tokens: Array, embedded: Array):
    if self.prefix_factory is not None:
      return self.decoder.prefix(self.config)
    if not self.share_prompt or not _stands_in_front(self.decoder):
      return None
    prompt = self.decoder.prompt.prompt(tokens, embedded)
    if prompt.ndim != 2:  # one an example
      return None
    x = self._normed(prompt.astype(self.config.dtype)[None])
    return self.decoder(x, None, None, begins_with_prompt=True)[1]

  def _inputs(self, tokens, visible, prefix, instance):
    """What the layers run on: embedded [B, (P +) T, H], its mask, a prefix."""
    if self.layer_prompt_factory and not _stands_in_front(self.decoder):
      raise errors.UserError(
          "PER_LAYER_PROMPT needs a PROMPT in front of everything else: "
          "@train_prompts.Prompt, with @train_prompts.prefix_prompt.")
    x = self.token_embedder(tokens)
    if prefix is None:
      prefix = self._shared(tokens, x)
    if self.prompt_factory is not None and prefix is None:
      x = prompts.called(
          self.decoder.prompt, tokens, x, instance).astype(x.dtype)
      if visible is not None:
        extra = x.shape[1] - visible.shape[1]
        visible = jnp.pad(
            visible, ((0, 0), (extra, 0)), constant_values=True)
    return self._normed(x), visible, prefix

  def _normed(self, x: Array) -> Array:
    return self.embedding_norm(x) if self.config.embedding_norm else x


def _stands_in_front(decoder: Decoder) -> bool:
  """Whether the model's prompt is put before everything else."""
  if decoder.prompt_factory is None:
    return False
  prompt = decoder.prompt
  # Gin wraps the functions that it hands out.
  return (isinstance(prompt, train_prompts.Prompt)
          and not prompts.takes_instance(prompt.prompt)
          and inspect.unwrap(prompt.combine) is inspect.unwrap(
              train_prompts.prefix_prompt))
