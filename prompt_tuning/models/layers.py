"""Layers that the model families share: dense, embedding, norm, attention, MLP.

Every parameter carries T5X's logical axes (collection `params_axes`), so that
one set of rules shards any family, and a stock T5X partitioner accepts the
modules. Shapes follow `docs/notation.md`.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math

import flax.linen as nn
from flax.linen import partitioning
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.models import products, quantized

Array = jax.Array
Dtype = jnp.dtype
Initializer = Callable[..., Array]

# Large enough that a masked key gets probability 0 in float32 and bfloat16,
# and far from overflow when a position bias is added to it (T5X's value).
MASKED = -1e10

dense_init = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal")


def key_mask(is_token: Array, dtype: Dtype = jnp.float32) -> Array:
  """Additive mask that hides padding keys: [B, S] bool -> [B, 1, 1, S]."""
  return jnp.where(is_token, 0.0, MASKED).astype(dtype)[:, None, None, :]


def causal_mask(length: int, dtype: Dtype = jnp.float32) -> Array:
  """Additive mask that hides later keys: [1, 1, T, T]."""
  earlier = np.tril(np.ones((length, length), bool))
  return jnp.where(earlier, 0.0, MASKED).astype(dtype)[None, None]


def attend(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    keep: Array | None = None,
) -> Array:
  """Softmax attention without the 1/sqrt(D) scale, as T5 has it.

  Heads come before positions because XLA's CPU matmuls then run on contiguous
  blocks, twice as fast.

  Args:
    query: [B, N, T, D].
    key: [B, N, S, D].
    value: [B, N, S, D].
    bias: broadcastable to [B, N, T, S]; masks and position biases, added up.
    keep: broadcastable to [B, N, T, S], multiplies the attention weights; see
      `stack_dropout`.

  Returns:
    [B, N, T, D]. Scores and softmax are float32 whatever the input dtype.
  """
  if query.dtype.itemsize == 2:
    return _narrow_attention(query, key, value, bias, keep)
  scores = jnp.einsum("bntd,bnsd->bnts", query, key)
  return jnp.einsum("bnts,bnsd->bntd", _weights(scores, bias, keep), value)


def _weights(scores: Array, bias, keep) -> Array:
  """Scores [B, N, T, S] to what each query takes of each key, float32."""
  weights = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)
  return weights if keep is None else weights * keep


@jax.custom_vjp
def _narrow_attention(query, key, value, bias, keep):
  """`attend` in 16 bits.

  Differentiated by hand, so that of the arrays [B, N, T, S] only the weights
  are kept, in 16 bits, and that XLA's CPU backend multiplies 16-bit arrays
  instead of converting them: half the time.
  """
  return _attention_forward(query, key, value, bias, keep)[0]


def _attention_forward(query, key, value, bias, keep):
  scores = products.einsum("bntd,bnsd->bnts", query, key, jnp.float32)
  weights = _weights(scores, bias, None)
  taken = (weights if keep is None else weights * keep).astype(query.dtype)
  return products.einsum("bnts,bnsd->bntd", taken, value), (
      query, key, value, weights.astype(query.dtype), bias, keep)


def _attention_backward(saved, gradient):
  query, key, value, weights, bias, keep = saved
  times = lambda w: w if keep is None else w * keep  # noqa: E731
  wide = weights.astype(jnp.float32)
  to_value = products.einsum(
      "bnts,bntd->bnsd", times(wide).astype(query.dtype), gradient)
  to_taken = products.einsum("bntd,bnsd->bnts", gradient, value, jnp.float32)
  mean = jnp.sum(wide * times(to_taken), axis=-1, keepdims=True)
  to_scores = wide * (times(to_taken) - mean)
  narrow = to_scores.astype(query.dtype)
  to_bias = None if bias is None else _summed_to(to_scores, bias)
  to_keep = None if keep is None else jnp.zeros_like(keep)  # it is drawn
  return (products.einsum("bnts,bnsd->bntd", narrow, key),
          products.einsum("bnts,bntd->bnsd", narrow, query), to_value, to_bias,
          to_keep)


_narrow_attention.defvjp(_attention_forward, _attention_backward)


def _summed_to(x: Array, like: Array) -> Array:
  """Undoes a broadcast: the sum of x over the axes in which `like` has 1."""
  lead = x.ndim - like.ndim
  axes = (*range(lead), *(
      lead + i for i, n in enumerate(like.shape) if n != x.shape[lead + i]))
  return jnp.sum(x, axis=axes).reshape(like.shape).astype(like.dtype)


def few_queries(queries: int, keys: int, head_dim: int) -> bool:
  """Whether `attend_to_memory` costs less than making keys and values.

  One query is a step of decoding: there XLA makes keys and values once, before
  the loop, which is cheaper still.
  """
  return 1 < queries and queries * (head_dim + keys) < keys * head_dim


def attend_to_memory(
    query: Array,
    memory: Array,
    key_kernel: Array,
    value_kernel: Array,
    bias: Array | None,
    keep: Array | None = None,
    prefix: tuple[Array, Array] | None = None,
) -> Array:
  """`attend` without ever making keys and values of the memory.

  q (m K)' = (q K') m' and w (m V) = (w m) V: few queries go through the kernels
  instead of a long memory, which is cheaper if T (D + S) < S D. For targets of
  8 tokens and inputs of 228 that is a sixth of the work.

  Args:
    query: [B, N, T, D].
    memory: [B, S, H].
    key_kernel: [H, N * D].
    value_kernel: [H, N * D].
    bias: see `attend`.
    keep: see `attend`.
    prefix: keys and values [1, N, P, D] in front of the memory's.

  Returns:
    [B, N, T, D].
  """
  heads, width = query.shape[1], query.shape[3]
  key_kernel, value_kernel = (
      k.reshape(-1, heads, width) for k in (key_kernel, value_kernel))
  through = products.einsum("bntd,hnd->bnth", query, key_kernel)
  scores = products.einsum("bnth,bsh->bnts", through, memory, jnp.float32)
  if bias is not None:
    scores = scores + bias
  before = 0
  if prefix is not None:
    keys, values = (part[0].astype(query.dtype) for part in prefix)
    before = keys.shape[1]
    scores = jnp.concatenate([products.einsum(
        "bntd,npd->bntp", query, keys, jnp.float32), scores], axis=-1)
  weights = _weights(scores, None, keep).astype(query.dtype)
  mixed = products.einsum("bnts,bsh->bnth", weights[..., before:], memory)
  out = products.einsum("bnth,hnd->bntd", mixed, value_kernel)
  if prefix is None:
    return out
  return out + products.einsum(
      "bntp,npd->bntd", weights[..., :before], values)


class Dense(nn.Module):
  """`x @ kernel (+ bias)`: [..., in] -> [..., features]."""

  features: int
  axes: tuple[str, str]
  dtype: Dtype = jnp.float32
  kernel_init: Initializer = dense_init
  use_bias: bool = False

  @nn.compact
  def kernel(self, width: int) -> Array:
    """The parameter itself: [width, features]."""
    return self._parameter(width).astype(self.dtype)

  def _parameter(self, width: int) -> quantized.Matrix:
    return partitioning.param_with_axes(
        "kernel", self.kernel_init, (width, self.features), jnp.float32,
        axes=self.axes)

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = quantized.matmul(
        x.astype(self.dtype), self._parameter(x.shape[-1]))
    if not self.use_bias:
      return x
    bias = partitioning.param_with_axes(
        "bias", nn.initializers.zeros, (self.features,), jnp.float32,
        axes=self.axes[1:])
    return x + bias.astype(self.dtype)


class Embed(nn.Module):
  """The token table: ids [B, T] -> [B, T, H], and its transpose as logits."""

  num_embeddings: int
  features: int
  dtype: Dtype = jnp.float32
  axes: tuple[str, str] = ("vocab", "embed")

  def setup(self):
    self.embedding = partitioning.param_with_axes(
        "embedding", nn.initializers.normal(1.0),
        (self.num_embeddings, self.features), jnp.float32, axes=self.axes)

  def __call__(self, tokens: Array) -> Array:
    # T5X's eval initialises with float32 tokens, hence the cast. A gather
    # costs 16 % fewer FLOPs a step than T5X's one-hot matmul.
    rows = quantized.take(self.embedding, tokens.astype(jnp.int32))
    return rows.astype(self.dtype)

  def attend(self, x: Array) -> Array:
    """Logits against the table: [B, T, H] -> [B, T, V], float32."""
    return quantized.attend(x, self.embedding)


class RootMeanSquareNorm(nn.Module):
  """T5's layer norm: no mean, no bias, statistics in float32."""

  epsilon: float = 1e-6
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = partitioning.param_with_axes(
        "scale", nn.initializers.ones, (x.shape[-1],), jnp.float32,
        axes=("embed",))
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(lax.square(x), axis=-1, keepdims=True)
    return (x * lax.rsqrt(mean_square + self.epsilon) * scale).astype(
        self.dtype)


class LayerNorm(nn.Module):
  """Mean 0, variance 1, then scale and bias; statistics in float32."""

  epsilon: float = 1e-5
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale, bias = (
        partitioning.param_with_axes(
            name, initializer, (x.shape[-1],), jnp.float32, axes=("embed",))
        for name, initializer in (("scale", nn.initializers.ones),
                                  ("bias", nn.initializers.zeros)))
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(lax.square(x), axis=-1, keepdims=True)
    return (x * lax.rsqrt(variance + self.epsilon) * scale + bias).astype(
        self.dtype)


class Mlp(nn.Module):
  """Product of activated projections, then back: relu, or gated gelu.

  Attributes:
    width: F.
    activations: one name a projection; `("relu",)` is T5 1.0, `("gelu",
      "linear")` T5 1.1, `("silu", "linear")` Llama. `gelu` is the tanh
      approximation, as T5X, T5 and GPT-2 have it; `gelu_exact` the real one.
  """

  width: int
  activations: Sequence[str] = ("gelu", "linear")
  dtype: Dtype = jnp.float32
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: Array, keep: Array | None = None) -> Array:
    """[B, T, H] -> [B, T, H]; `keep` [B, 1, F] drops products."""
    projected = []
    for i in range(len(self.activations)):
      layer = "wi" if len(self.activations) == 1 else f"wi_{i}"
      projected.append(Dense(
          self.width, ("embed", "mlp"), self.dtype, use_bias=self.use_bias,
          name=layer)(x))
    h = _gate(tuple(self.activations), *projected)  # [B, T, F]
    h = masked(h, keep)
    return Dense(
        x.shape[-1], ("mlp", "embed"), self.dtype, use_bias=self.use_bias,
        name="wo")(h)


@functools.partial(jax.checkpoint, static_argnums=0)
def _gate(names: tuple[str, ...], *projected: Array) -> Array:
  """Product of the activated projections, all [..., F].

  Backpropagation computes the activations again from the projections instead
  of keeping five arrays of [B, T, F] a layer: elementwise work, a fifth less
  memory in a training step of T5 small (625 to 502 MB).
  """
  dtype = projected[0].dtype
  # In 16 bits each operation would be rounded, which takes a CPU longer.
  return functools.reduce(jnp.multiply, (
      _ACTIVATIONS[name](x.astype(jnp.float32))
      for name, x in zip(names, projected))).astype(dtype)


_ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


def dropout(x: Array, rate: float, enable: bool) -> Array:
  """Dropout with one mask for all positions, as T5X (broadcast over -2)."""
  if not enable or rate == 0.0:
    return x
  return nn.Dropout(rate, broadcast_dims=(-2,))(x, deterministic=False)


def element_dropout(module: nn.Module, x: Array, rate: float) -> Array:
  """Dropout of each element by itself, in calls of a module with an rng for it.

  As PyTorch's models have it. Called from the module's compact method.
  """
  if not drops(module, rate):
    return x
  return nn.Dropout(rate, deterministic=False)(x)


def drops(module: nn.Module, rate: float) -> bool:
  """Whether `element_dropout` does anything."""
  return rate > 0.0 and module.has_rng("dropout")


def stack_dropout(
    module: nn.Module, config, length: int, x: Array, enable: bool,
    keys: Mapping[str, int],
) -> dict[str, Array]:
  """What each layer of a stack drops, see `dropout`.

  All masks are drawn at once: to compile a generator of random numbers for
  each place of each layer took most of the time to a first step.

  Args:
    module: the stack, for its rng `dropout`.
    config: has `dropout_rate`, `num_heads` and `mlp_dim`.
    length: L.
    x: [B, T, H] what goes from layer to layer.
    enable: whether anything is dropped.
    keys: each attention's name and number of keys S.

  Returns:
    What `masked` multiplies by, 0 or 1 / (1 - rate), float32; empty if nothing
    is dropped. {name} [L, B, N, 1, S] and {name}_out [L, B, 1, H] of each
    attention, mlp [L, B, 1, F] and mlp_out [L, B, 1, H].
  """
  rate = config.dropout_rate
  if not enable or rate == 0.0:
    return {}
  batch, _, width = x.shape
  shapes = {"mlp": (batch, 1, config.mlp_dim), "mlp_out": (batch, 1, width)}
  for name, count in keys.items():
    shapes[name] = (batch, config.num_heads, 1, count)
    shapes[f"{name}_out"] = (batch, 1, width)
  sizes = [math.prod(shape) for shape in shapes.values()]
  drawn = jax.random.bernoulli(
      module.make_rng("dropout"), 1.0 - rate, (length, sum(sizes)))
  parts = jnp.split(
      jnp.where(drawn, 1.0 / (1.0 - rate), 0.0), np.cumsum(sizes)[:-1], axis=1)
  return {name: part.reshape(length, *shape)
          for (name, shape), part in zip(shapes.items(), parts)}


def prefix_length(prefix: tuple[Array, Array] | None) -> int:
  """P of keys and values [L, 1 or B, N, P, D]; 0 without any."""
  return 0 if prefix is None else prefix[0].shape[3]


def masked(x: Array, mask: Array | None) -> Array:
  """x times a mask of `stack_dropout`, where there is one."""
  return x if mask is None else (x * mask).astype(x.dtype)


def _in_front(first: Array, x: Array, axis: int) -> Array:
  """Concatenates, `first` repeated to the other axes of x: [B, N, ., .]."""
  shape = (*x.shape[:axis], first.shape[axis], *x.shape[axis + 1:])
  first = jnp.broadcast_to(first, shape).astype(x.dtype)
  return jnp.concatenate([first, x], axis)


def relative_position_bucket(
    relative_position: Array,
    bidirectional: bool,
    num_buckets: int = 32,
    max_distance: int = 128,
) -> Array:
  """Buckets of T5's relative position bias (Raffel et al. 2020, 2.1).

  Half of the buckets are exact, the others logarithmic up to `max_distance`;
  with `bidirectional` one half of all is for keys after the query.

  Args:
    relative_position: key position - query position, any shape.
    bidirectional: whether keys after the query are told apart.
    num_buckets: how many buckets there are in all.
    max_distance: from here on everything shares the last bucket.

  Returns:
    int32 bucket numbers, same shape.
  """
  offset = jnp.zeros_like(relative_position)
  distance = -relative_position
  if bidirectional:
    num_buckets //= 2
    offset = num_buckets * (distance < 0)
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(distance, 0)
  exact = num_buckets // 2
  # The epsilon keeps log(0) finite; those entries are taken from `distance`.
  ratio = jnp.log(
      distance.astype(jnp.float32) / exact + np.finfo(np.float32).eps)
  far = exact + (
      ratio / np.log(max_distance / exact) * (num_buckets - exact)
  ).astype(jnp.int32)
  far = jnp.minimum(far, num_buckets - 1)
  return (offset + jnp.where(distance < exact, distance, far)).astype(
      jnp.int32)


class RelativePositionBias(nn.Module):
  """One bias a head and bucket, shared by the layers of a stack."""

  num_heads: int
  bidirectional: bool
  num_buckets: int = 32
  max_distance: int = 128

  @nn.compact
  def __call__(self, query_positions: Array, key_positions: Array) -> Array:
    """Positions [T] and [S] -> [1, N, T, S], float32."""
    table = partitioning.param_with_axes(
        "rel_embedding",
        nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
        (self.num_heads, self.num_buckets), jnp.float32,
        axes=("heads", "relpos_buckets"))
    buckets = relative_position_bucket(
        key_positions[None, :] - query_positions[:, None],
        self.bidirectional, self.num_buckets, self.max_distance)
    return jnp.take(table, buckets, axis=1)[None]  # [1, N, T, S]


class Attention(nn.Module):
  """Multi-head attention with T5's 2-D kernels and an optional cache.

  Attributes:
    num_heads: N.
    head_dim: D.
    dtype: of the activations.
    use_bias: whether the four projections have biases (BART).
    scaled: whether scores are divided by sqrt(D); T5's are not.
  """

  num_heads: int
  head_dim: int
  dtype: Dtype = jnp.float32
  use_bias: bool = False
  scaled: bool = False

  @nn.compact
  def __call__(
      self,
      x: Array,
      memory: Array,
      bias: Array | None = None,
      *,
      decode: bool = False,
      keep: Array | None = None,
      prefix: tuple[Array, Array] | None = None,
      prefix_bias: Array | None = None,
  ) -> Array:
    """Attends from `x` to `memory`.

    Args:
      x: [B, T, H] the queries' side; or [B * k, T, H], k rows side by side for
        each row of the memory, as beams are.
      memory: [B, S, H] the keys' side; `x` itself for self-attention.
      bias: broadcastable to [B, N, T, S].
      decode: keep keys and values of earlier calls in the collection `cache`.
        The call that creates the cache gives its length S; each later call
        has T = 1.
      keep: drops attention weights, see `attend`; S counts the prefix.
      prefix: keys and values [1 or B, N, P, D] in front of the memory's.
      prefix_bias: broadcastable to [B, N, T, P]; None is 0.

    Returns:
      [B, T, H].
    """
    features = self.num_heads * self.head_dim
    before = x.shape[:-1]
    # Hypotheses of one example are more queries to its keys, without a copy.
    shared = x.shape[0] > memory.shape[0]
    if shared:
      x = x.reshape(memory.shape[0], -1, x.shape[-1])
    query_init = dense_init
    if not self.scaled:
      # T5 has no 1/sqrt(D) in its scores; its initial query kernel carries it.
      query_init = nn.initializers.variance_scaling(
          1.0 / self.head_dim, "fan_in", "truncated_normal")
    project = functools.partial(
        Dense, features, ("embed", "joined_kv"), self.dtype,
        use_bias=self.use_bias)
    query = self._split(project(name="query", kernel_init=query_init)(x))
    if self.scaled:
      query = query * self.head_dim**-0.5
    key_projection, value_projection = project(name="key"), project(
        name="value")
    plain = (x is not memory and not shared and not self.use_bias
             and (prefix is None or prefix[0].shape[0] == 1))
    if plain and few_queries(query.shape[2], memory.shape[1], self.head_dim):
      out = attend_to_memory(
          query, memory, key_projection.kernel(memory.shape[-1]),
          value_projection.kernel(memory.shape[-1]), bias, keep, prefix)
    else:
      key = self._split(key_projection(memory))
      value = self._split(value_projection(memory))
      if decode:
        key, value, bias = self._extend_cache(key, value, bias)
      if prefix is not None:
        key, value = (
            _in_front(part, of, 2) for part, of in zip(prefix, (key, value)))
        if prefix_bias is None:
          prefix_bias = jnp.zeros((1, 1, 1, prefix[0].shape[2]))
        bias = _in_front(prefix_bias, bias, 3)
      out = attend(query, key, value, bias, keep)
    out = jnp.swapaxes(out, 1, 2)  # [B, T, N, D]
    out = out.reshape(*before, features)  # [B, T, N * D]
    return Dense(
        x.shape[-1], ("joined_kv", "embed"), self.dtype,
        use_bias=self.use_bias, name="out")(out)

  def _split(self, x: Array) -> Array:
    x = x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
    return jnp.swapaxes(x, 1, 2)  # [B, N, T, D]

  def _extend_cache(self, key, value, bias):
    """Writes this step's key and value; returns all of them and the mask."""
    is_first_call = not self.has_variable("cache", "cached_key")
    keys = self.variable("cache", "cached_key", jnp.zeros_like, key)
    values = self.variable("cache", "cached_value", jnp.zeros_like, value)
    # A scalar of this very name: T5X's beam search must not expand it.
    index = self.variable("cache", "cache_index", jnp.zeros, (), jnp.int32)
    if is_first_call:
      return key, value, bias
    step = index.value
    keys.value = lax.dynamic_update_slice_in_dim(keys.value, key, step, 2)
    values.value = lax.dynamic_update_slice_in_dim(
        values.value, value, step, 2)
    index.value = step + 1
    written = jnp.arange(keys.value.shape[2]) <= step
    mask = key_mask(written[None])  # [1, 1, 1, S]
    return keys.value, values.value, mask if bias is None else bias + mask
