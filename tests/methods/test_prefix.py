"""Tests of methods.prefix. Oracles: the layout by index, PEFT's encoder."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import prompts
from prompt_tuning.errors import UserError
from prompt_tuning.methods import prefix
from prompt_tuning.models import bart, causal_lm, t5
from prompt_tuning.train import sharding

LENGTH = 3
CONFIG = causal_lm.Config(32, 8, 2, 4, 2, 16, num_kv_heads=2)
WIDTH = 2 * 2 * 2 * 2  # L * 2 * K * D
KINDS = {
    "table": prefix.Prefix(LENGTH),
    "projected": prefix.ProjectedPrefix(LENGTH, 5)}


def init(module, config=CONFIG):
  return module.init(jax.random.PRNGKey(0), config)


def test_a_row_is_layers_then_keys_and_values_then_heads():
  table = np.arange(LENGTH * WIDTH, dtype=np.float32).reshape(LENGTH, WIDTH)
  keys, values = prefix.split(jnp.asarray(table), 2, 2)
  assert keys.shape == (2, 1, 2, LENGTH, 2)
  by_index = table.reshape(LENGTH, 4, 2, 2)  # [P, 2 L, K, D]
  for layer in range(2):
    for head in range(2):
      np.testing.assert_array_equal(
          keys[layer, 0, head], by_index[:, 2 * layer, head])
      np.testing.assert_array_equal(
          values[layer, 0, head], by_index[:, 2 * layer + 1, head])
  np.testing.assert_array_equal(prefix.join(keys, values), table)


@pytest.mark.parametrize("kind", KINDS)
def test_folded_is_what_a_table_gives(kind):
  module = KINDS[kind]
  params = init(module)["params"]
  table = prefix.fold(module, params, CONFIG)
  assert table.shape == (LENGTH, WIDTH)
  plain = prefix.Prefix(LENGTH).apply({"params": {"prefix": table}}, CONFIG)
  for got, want in zip(module.apply({"params": params}, CONFIG), plain):
    np.testing.assert_array_equal(got, want)


def test_zero_starts():
  zeros = flax.linen.initializers.zeros
  for module in (prefix.Prefix(LENGTH, zeros),
                 prefix.ProjectedPrefix(LENGTH, zero_output=True)):
    variables = init(module)
    assert not np.any(prefix.fold(module, variables["params"], CONFIG))
    gradients = jax.grad(lambda p, m=module: jnp.sum(jnp.square(
        prefix.fold(m, p, CONFIG) - 1)))(variables["params"])
    assert any(np.any(g) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_trains_it_and_every_axis_has_a_rule(kind):
  model = causal_lm.CausalLM(CONFIG, prefix_factory=lambda: KINDS[kind])
  tokens = jnp.asarray([[5, 6, 7, 8]])
  variables = model.init(jax.random.PRNGKey(0), tokens)
  params = variables["params"]
  assert set(params["decoder"]["prefix"]) == (
      {"prefix"} if kind == "table" else {"embedding", "mlp_0", "mlp_1"})
  axes = flax.traverse_util.flatten_dict(variables["params_axes"]["decoder"][
      "prefix"])
  for leaf in axes.values():
    sharding.partition_spec(
        leaf.names, (4,) * len(leaf.names), {"data": 1, "fsdp": 1, "model": 1})

  def loss(own):
    whole = params | {"decoder": params["decoder"] | {"prefix": own}}
    return jnp.sum(jnp.square(model.apply({"params": whole}, tokens)))

  gradients = jax.grad(loss)(params["decoder"]["prefix"])
  assert all(np.any(g) for g in jax.tree.leaves(gradients))


SETS = ("encoder_prefix_factory", "decoder_prefix_factory",
        "cross_prefix_factory")
T5 = t5.Config(32, 8, 2, 4, 16, 1, 2)
INPUTS = jnp.asarray([[4, 5, 6]])
TARGETS = jnp.asarray([[0, 7, 8, 9]])


def t5_with(*sets, config=T5, **options):
  """A T5 with some of the three sets, and its parameters."""
  module = t5.EncoderDecoder(config, **{
      name: lambda: prefix.Prefix(LENGTH, **options) for name in sets})
  init = jax.jit(lambda: module.init(
      jax.random.PRNGKey(0), INPUTS, TARGETS, TARGETS, enable_dropout=False))
  return module, init()["params"]


def t5_logits(module, params):
  return jax.jit(lambda params: module.apply(
      {"params": params}, INPUTS, TARGETS, enable_dropout=False))(params)


def test_each_set_of_t5_changes_the_logits_and_is_trained():
  module, params = t5_with(*SETS)
  paths = {
      "encoder": ("encoder", "prefix"), "decoder": ("decoder", "prefix"),
      "cross": ("decoder", "cross_prefix")}
  sizes = {name: params[side][own]["prefix"].shape
           for name, (side, own) in paths.items()}
  assert sizes == {"encoder": (LENGTH, 16), "decoder": (LENGTH, 32),
                   "cross": (LENGTH, 32)}
  gradients = jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(
      t5_logits(module, params)))))(params)
  for side, own in paths.values():
    layers = np.asarray(gradients[side][own]["prefix"]).reshape(
        LENGTH, -1, 2, 8)
    assert np.all(np.abs(layers).max(axis=(0, 3)) > 1e-6)


@pytest.mark.slow
def test_t5_decodes_with_all_sets_as_without_a_cache():
  module, params = t5_with(*SETS)
  whole = t5_logits(module, params)

  @jax.jit
  def start(params):
    encoded = module.apply(
        {"params": params}, INPUTS, enable_dropout=False,
        method=module.encode)
    _, cache = module.apply(
        {"params": params}, encoded, INPUTS, TARGETS, enable_dropout=False,
        decode=True, max_decode_length=4, mutable=["cache"],
        method=module.decode)
    return encoded, cache

  @jax.jit
  def step(params, encoded, cache, tokens):
    return module.apply(
        {"params": params, **cache}, encoded, INPUTS, tokens,
        enable_dropout=False, decode=True, max_decode_length=4,
        mutable=["cache"], method=module.decode)

  encoded, cache = start(params)
  for i in range(4):
    logits, cache = step(params, encoded, cache, TARGETS[:, i:i + 1])
    np.testing.assert_allclose(logits[:, 0], whole[:, i], atol=1e-5)


def test_layers_as_peft_has_them():
  """Layer i reads layer 2 i mod L; with L = 4 the odd ones get no gradient."""
  config = t5.Config(32, 8, 2, 4, 16, 4, 4)
  module = prefix.Prefix(LENGTH, peft_layers=True)
  params = module.init(jax.random.PRNGKey(0), config, 4)["params"]
  table = np.asarray(params["prefix"]).reshape(LENGTH, 4, 16)
  folded = prefix.fold(module, params, config, 4).reshape(LENGTH, 4, 16)
  np.testing.assert_array_equal(folded, table[:, [0, 2, 0, 2]])
  plain = prefix.Prefix(LENGTH, peft_layers=True)
  np.testing.assert_array_equal(  # decoder-only: no difference
      prefix.fold(plain, {"prefix": jnp.arange(48.).reshape(3, 16)}, CONFIG),
      np.arange(48.).reshape(3, 16))


def test_three_dense_layers_by_hand():
  module = prefix.ProjectedPrefix(LENGTH, 5, 3)
  params = jax.tree.map(np.asarray, init(module)["params"])
  h = params["embedding"].astype(np.float64)
  for i in range(3):
    h = h @ params[f"mlp_{i}"]["kernel"] + params[f"mlp_{i}"]["bias"]
    h = np.tanh(h) if i < 2 else h
  np.testing.assert_allclose(
      prefix.fold(module, params, CONFIG), h, atol=1e-6)
  with pytest.raises(UserError, match="2 or 3"):
    init(prefix.ProjectedPrefix(LENGTH, 5, 4))


def test_dropout_is_for_training_steps():
  """Half of the numbers are 0, the others doubled; none without the rng."""
  module = prefix.Prefix(LENGTH, flax.linen.initializers.ones, dropout=0.5)
  variables = init(module)
  plain = prefix.join(*module.apply(variables, CONFIG))
  np.testing.assert_array_equal(plain, 1)
  dropped = prefix.join(*module.apply(
      variables, CONFIG, rngs={"dropout": jax.random.PRNGKey(1)}))
  assert set(np.unique(dropped)) == {0.0, 2.0}


# Numbers that are trained: Li & Liang's code and PEFT's, by their arithmetic.
PUBLISHED = {
    "gpt2_medium": (24, 16, 64, 5, 512, 25_744_896),
    "gpt2_large": (36, 20, 64, 5, 512, 47_940_352),
    "distilgpt2, PEFT": (6, 12, 64, 5, 768, 7_681_536)}


@pytest.mark.parametrize("case", PUBLISHED)
def test_sizes_are_the_published_ones(case):
  layers, heads, width, length, hidden, trained = PUBLISHED[case]
  config = causal_lm.Config(8, heads * width, layers, heads, width, 8)
  assert count(prefix.ProjectedPrefix(length, hidden), config) == trained
  stored = {"gpt2_medium": 245_760, "distilgpt2, PEFT": 46_080}
  if case in stored:
    assert count(prefix.Prefix(length), config) == stored[case]


def test_sizes_of_bart_large_are_the_published_ones():
  """Three sets of 12 layers, 200 positions, 800 wide."""
  config = bart.Config(
      8, 1024, 16, 64, 8, 12, 12, scan_layers=True)
  for make, total in (
      (lambda: prefix.ProjectedPrefix(200, 800), 62_130_528),
      (lambda: prefix.Prefix(200), 14_745_600)):
    module = bart.EncoderDecoder(config, **dict.fromkeys(SETS, make))
    shapes = jax.eval_shape(lambda m=module: m.init(
        jax.random.PRNGKey(0), INPUTS, TARGETS,
        enable_dropout=False))["params"]
    assert total == sum(
        x.size for path, x in flax.traverse_util.flatten_dict(
            shapes, sep="/").items() if "prefix/" in path)


def count(module, config):
  shapes = jax.eval_shape(
      lambda: module.init(jax.random.PRNGKey(0), config)["params"])
  return sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parity
@pytest.mark.parametrize("projection", [False, True])
def test_equals_the_encoder_of_peft(projection):
  torch = pytest.importorskip("torch")
  peft = pytest.importorskip("peft")
  torch.manual_seed(0)
  encoder = peft.PrefixEncoder(peft.PrefixTuningConfig(
      num_virtual_tokens=LENGTH, token_dim=4, num_layers=2,
      num_attention_heads=2, encoder_hidden_size=5,
      prefix_projection=projection))
  with torch.no_grad():
    expected = encoder(torch.arange(LENGTH)[None])[0].numpy()
  state = {k: v.numpy() for k, v in encoder.state_dict().items()}
  if projection:
    module = KINDS["projected"]
    params = {"embedding": state["embedding.weight"]} | {
        f"mlp_{i}": {"kernel": state[f"transform.{2 * i}.weight"].T,
                     "bias": state[f"transform.{2 * i}.bias"]}
        for i in range(2)}
  else:
    module, params = KINDS["table"], {"prefix": state["embedding.weight"]}
  np.testing.assert_allclose(
      prefix.fold(module, params, CONFIG), expected, atol=1e-6)


def test_a_saved_table_is_a_start():
  table = np.arange(LENGTH * WIDTH, dtype=np.float32).reshape(LENGTH, WIDTH)
  module = prefix.Prefix(LENGTH, prompts.from_array(table))
  np.testing.assert_array_equal(init(module)["params"]["prefix"], table)
