"""Layers against closed forms in float64 and in exact integers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.models import layers


@pytest.fixture
def random():
  return np.random.RandomState(0)


# ------------------------------------------------- relative position buckets


def bucket_by_the_paper(offset, bidirectional, num_buckets, max_distance):
  """Raffel et al. 2020, section 2.1, in integers: no logarithm to round.

  One half of the buckets is for single distances; the bounds of the others
  grow by one ratio up to `max_distance`, from where on all share the last.
  Bucket E + k of E single ones and M others begins at E (max / E)^(k / M).
  """
  first = 0
  if bidirectional:
    num_buckets //= 2
    first = num_buckets if offset > 0 else 0
    distance = abs(offset)
  else:
    distance = -offset if offset < 0 else 0
  single = num_buckets // 2
  if distance < single:
    return first + distance
  others = num_buckets - single
  k = 0
  while (k + 1 < others and distance**others * single**(k + 1)
         >= max_distance**(k + 1) * single**others):
    k += 1
  return first + single + k


@pytest.mark.parametrize("num_buckets, max_distance", [(32, 128), (8, 12)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_the_papers(bidirectional, num_buckets, max_distance):
  offsets = np.arange(-200, 201)
  got = layers.relative_position_bucket(
      jnp.asarray(offsets), bidirectional, num_buckets, max_distance)
  assert got.dtype == jnp.int32
  np.testing.assert_array_equal(got, [
      bucket_by_the_paper(int(o), bidirectional, num_buckets, max_distance)
      for o in offsets])
  used = set(np.asarray(got).tolist())
  # Of keys after the query, distance 0 is never one of them.
  unused = {num_buckets // 2} if bidirectional else set()
  assert used == set(range(num_buckets)) - unused


@pytest.mark.parity
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_transformers(bidirectional):
  torch = pytest.importorskip("torch")
  modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
  offsets = np.arange(-300, 301)
  np.testing.assert_array_equal(
      layers.relative_position_bucket(jnp.asarray(offsets), bidirectional),
      modeling.T5Attention._relative_position_bucket(
          torch.from_numpy(offsets), bidirectional, 32, 128).numpy())


def test_position_bias_looks_up_key_minus_query(random):
  table = random.randn(2, 8).astype(np.float32)
  bias = layers.RelativePositionBias(2, True, 8, 12).apply(
      {"params": {"rel_embedding": table}}, jnp.arange(4), jnp.arange(6))
  assert bias.shape == (1, 2, 4, 6)
  for t in range(4):
    for s in range(6):
      bucket = bucket_by_the_paper(s - t, True, 8, 12)
      np.testing.assert_array_equal(bias[0, :, t, s], table[:, bucket])


# ------------------------------------------------------------------ attention


def attention_in_float64(query, key, value, bias):
  scores = np.einsum(
      "bntd,bnsd->bnts", query.astype(np.float64), key) + bias
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum("bnts,bnsd->bntd", weights, value)


def test_attention_is_unscaled_softmax(random):
  query = random.randn(2, 3, 4, 5).astype(np.float32)
  key, value = random.randn(2, 2, 3, 6, 5).astype(np.float32)
  bias = random.randn(1, 3, 4, 6).astype(np.float32)
  np.testing.assert_allclose(
      layers.attend(query, key, value, bias),
      attention_in_float64(query, key, value, bias), atol=1e-6)
  np.testing.assert_allclose(
      layers.attend(query, key, value, None),
      attention_in_float64(query, key, value, 0.0), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_masked_keys_have_no_weight_at_all(random, dtype):
  query = jnp.asarray(random.randn(1, 1, 4, 5), dtype)
  key, value = jnp.asarray(random.randn(2, 1, 1, 4, 5), dtype)
  is_token = jnp.array([[True, True, True, False]])
  bias = layers.key_mask(is_token) + layers.causal_mask(4)
  got = layers.attend(query, key, value, bias)
  # Huge, so that any weight above 0 would show; not NaN, as 0 * NaN is NaN.
  hidden = jnp.array([0.0, 0.0, 0.0, 1e6], dtype)[:, None]
  np.testing.assert_array_equal(
      got, layers.attend(query, key + hidden, value + hidden, bias))
  np.testing.assert_array_equal(got[0, 0, 0], value[0, 0, 0])  # sees itself
  later = jnp.array([0.0, 1e6, 1e6, 1e6], dtype)[:, None]
  np.testing.assert_array_equal(
      got[:, :, 0],
      layers.attend(query, key + later, value + later, bias)[:, :, 0])


def test_softmax_of_bfloat16_is_computed_in_float32(random):
  query = jnp.asarray(4 * random.randn(1, 1, 8, 32), jnp.bfloat16)
  key, value = jnp.asarray(random.randn(2, 1, 1, 64, 32), jnp.bfloat16)
  got = layers.attend(query, key, value, None)
  assert got.dtype == jnp.bfloat16
  exact = attention_in_float64(
      *(np.asarray(x, np.float32) for x in (query, key, value)), 0.0)
  # Scores reach 60, where bfloat16 is 0.25 apart: weights off by 28 %. In
  # float32 what is left is the rounding of weights and result, 2^-8 each.
  np.testing.assert_allclose(
      got.astype(jnp.float32), exact, atol=2 * 2**-8 * np.abs(value).max())


def test_initial_query_kernel_carries_the_scale():
  layer = layers.Attention(num_heads=4, head_dim=16)
  x = jnp.zeros((1, 1, 64))
  params = layer.init(jax.random.key(0), x, x)["params"]
  for name, std in (("query", (64 * 16)**-0.5), ("key", 64**-0.5)):
    np.testing.assert_allclose(
        np.std(params[name]["kernel"]), std, rtol=0.05)


# ------------------------------------------------------------ the other layers


def test_norm_divides_by_the_root_mean_square(random):
  x = 100 * random.randn(2, 3, 8).astype(np.float32)
  scale = random.randn(8).astype(np.float32)
  exact = x.astype(np.float64)
  exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6) * scale
  norm = layers.RootMeanSquareNorm()
  np.testing.assert_allclose(
      norm.apply({"params": {"scale": scale}}, x), exact, rtol=1e-6)


def test_norm_of_bfloat16_has_float32_statistics():
  # 2,048 ones: summed in bfloat16 they would stop at 256.
  x = jnp.ones((1, 2048), jnp.bfloat16)
  norm = layers.RootMeanSquareNorm(dtype=jnp.bfloat16)
  got = norm.apply({"params": {"scale": jnp.ones(2048)}}, x)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, x)


def gelu(x):
  """The tanh approximation (Hendrycks and Gimpel 2016)."""
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_mlps_of_both_versions(random):
  x = random.randn(2, 3, 4).astype(np.float32)
  wi, wi_0, wi_1 = random.randn(3, 4, 6).astype(np.float32)
  wo = random.randn(6, 4).astype(np.float32)

  def apply(activations, **kernels):
    return layers.Mlp(6, activations).apply(
        {"params": {n: {"kernel": k} for n, k in kernels.items()}}, x)

  x64 = x.astype(np.float64)
  np.testing.assert_allclose(
      apply(("relu",), wi=wi, wo=wo),
      np.maximum(x64 @ wi, 0) @ wo, atol=1e-5)
  np.testing.assert_allclose(
      apply(("gelu", "linear"), wi_0=wi_0, wi_1=wi_1, wo=wo),
      (gelu(x64 @ wi_0) * (x64 @ wi_1)) @ wo, atol=1e-5)


def test_embedding_and_its_transpose(random):
  table = random.randn(7, 4).astype(np.float32)
  embed = layers.Embed(7, 4)
  variables = {"params": {"embedding": table}}
  tokens = np.array([[0, 6], [3, 3]])
  rows = embed.apply(variables, tokens)
  np.testing.assert_array_equal(rows, table[tokens])
  # T5X initialises its evaluation with tokens that are floats.
  np.testing.assert_array_equal(
      embed.apply(variables, tokens.astype(np.float32)), rows)
  logits = embed.apply(
      variables, rows.astype(jnp.bfloat16), method=embed.attend)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, table[tokens] @ table.T, rtol=0.05,
                             atol=0.05)  # inputs rounded to 8 bits


class Dropped(nn.Module):
  """`layers.dropout` where Linen finds the rng."""

  rate: float

  @nn.compact
  def __call__(self, x, enable):
    return layers.dropout(x, self.rate, enable)


def test_dropout_has_one_mask_for_all_positions():
  x = jnp.ones((4, 5, 1000))
  rngs = {"dropout": jax.random.key(0)}
  got = np.asarray(Dropped(0.25).apply({}, x, True, rngs=rngs))
  np.testing.assert_array_equal(got, np.broadcast_to(got[:, :1], got.shape))
  assert set(np.unique(got)) == {0.0, np.float32(1 / 0.75)}
  # Of 4,000 draws; the standard deviation is 0.007.
  assert abs((got[:, 0] == 0).mean() - 0.25) < 0.03
  assert not np.array_equal(got[0, 0], got[1, 0])  # each example its own
  np.testing.assert_array_equal(Dropped(0.25).apply({}, x, False), x)
  np.testing.assert_array_equal(Dropped(0.0).apply({}, x, True), x)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_keep", [True, False])
def test_gradients_of_attention_in_16_bits(random, with_bias, with_keep):
  """Oracle: JAX's own derivative of the same formula in float32."""
  query = random.randn(2, 3, 8, 16)
  key, value = random.randn(2, 2, 3, 10, 16)
  wanted, bias = random.randn(2, 3, 8, 16), random.randn(1, 3, 8, 10)
  keep = (random.rand(2, 3, 1, 10) < 0.8) / 0.8 if with_keep else None
  narrow = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
  bias = jnp.asarray(bias, jnp.float32) if with_bias else jnp.float32(0.0)

  def total(parts, bias, keep):
    out = layers.attend(*parts, bias if with_bias else None, keep)
    return jnp.sum(out.astype(jnp.float32) * wanted), out

  run = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
  got, out = run(narrow, bias, keep)
  expected, exact = run([x.astype(jnp.float32) for x in narrow], bias, keep)
  assert {x.dtype for x in got[0]} == {out.dtype} == {jnp.dtype(jnp.bfloat16)}
  # A rounding is off by at most 2^-9 of a value, and each result has had a few.
  for x, y in zip(jax.tree.leaves((got, out)),
                  jax.tree.leaves((expected, exact))):
    error = np.asarray(x, np.float32) - np.asarray(y)
    assert np.sqrt(np.mean(error**2)) <= 2**-7 * np.sqrt(np.mean(y**2))


class StackDropped(nn.Module):
  """`layers.stack_dropout` where Linen finds the rng."""

  dropout_rate: float
  num_heads: int = 3
  mlp_dim: int = 500

  @nn.compact
  def __call__(self, x, enable):
    return layers.stack_dropout(self, self, 4, x, enable, {"attention": 70})


def test_each_layer_drops_its_own():
  x = jnp.ones((2, 5, 250))
  rngs = {"dropout": jax.random.key(0)}
  got = StackDropped(0.2).apply({}, x, True, rngs=rngs)
  assert {name: mask.shape for name, mask in got.items()} == {
      "attention": (4, 2, 3, 1, 70), "attention_out": (4, 2, 1, 250),
      "mlp": (4, 2, 1, 500), "mlp_out": (4, 2, 1, 250)}
  for mask in got.values():
    rows = np.asarray(mask).reshape(-1, mask.shape[-1])
    assert set(np.unique(rows)) == {0.0, np.float32(1 / 0.8)}
    # Of 1,680 draws at least; the standard deviation is at most 0.01.
    assert abs((rows == 0).mean() - 0.2) < 0.04
    assert len(np.unique(rows, axis=0)) == len(rows)
  out, mlp = got["attention_out"], got["mlp_out"]
  assert float(jnp.mean(out == mlp)) < 0.73  # by chance 0.68, off by 0.01
  assert not StackDropped(0.2).apply({}, x, False)
  assert not StackDropped(0.0).apply({}, x, True)
  np.testing.assert_array_equal(layers.masked(x, None), x)
  np.testing.assert_array_equal(
      layers.masked(x, got["mlp_out"][0]),
      np.broadcast_to(got["mlp_out"][0], x.shape))


@pytest.mark.parametrize("queries, keys, expected", [
    (1, 228, False),  # a step of decoding: XLA makes keys before the loop
    (2, 228, True), (8, 228, True), (49, 228, True), (50, 228, False),
    (8, 8, False)])
def test_few_queries_go_through_the_kernels(queries, keys, expected):
  # Oracle: multiplications of both ways, counted for H = 512, D = 64, N = 6.
  width, head_dim, heads = 512, 64, 6
  making_keys = keys * width * heads * head_dim + (
      queries * heads * head_dim * keys)
  through_kernels = queries * heads * width * (head_dim + keys)
  assert layers.few_queries(queries, keys, head_dim) is expected
  if queries > 1 and abs(making_keys / through_kernels - 1) > 0.1:
    assert (through_kernels < making_keys) is expected


@pytest.mark.parametrize("length", [0, 5])
def test_attending_through_the_kernels_is_attending(length):
  # Oracle: `attend` with the keys and values made, values and gradients.
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(  # noqa: E731
      rng.standard_normal(shape), jnp.float32)
  query, memory = draw(3, 2, 4, 8), draw(3, 40, 12)
  kernels = draw(12, 16) / 4, draw(12, 16) / 4
  mask = layers.key_mask(jnp.arange(40)[None] < jnp.array([[40], [25], [7]]))
  prefix = draw(1, 2, length, 8), draw(1, 2, length, 8)

  def through(query, memory):
    return layers.attend_to_memory(
        query, memory, *kernels, mask, prefix=prefix if length else None)

  def making(query, memory):
    key, value = (
        jnp.concatenate([
            jnp.broadcast_to(first, (3, *first.shape[1:])),
            jnp.swapaxes((memory @ k).reshape(3, 40, 2, 8), 1, 2)], axis=2)
        for first, k in zip(prefix, kernels))
    return layers.attend(
        query, key, value, jnp.pad(mask, ((0, 0),) * 3 + ((length, 0),)))

  with jax.default_matmul_precision("highest"):
    np.testing.assert_allclose(
        through(query, memory), making(query, memory), rtol=1e-5, atol=1e-5)
    for got, want in zip(*(
        jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1))(query, memory)
        for f in (through, making))):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
