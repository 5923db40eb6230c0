"""Tests of methods.prefix. Oracles: the layout by index, PEFT's encoder."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import prompts
from prompt_tuning.methods import prefix
from prompt_tuning.models import causal_lm, t5
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


def test_decoder_of_t5():
  """With and without a cache, against the plain model and keys by hand."""
  config = t5.Config(32, 8, 2, 4, 16, 1, 2)
  module = t5.EncoderDecoder(
      config, decoder_prefix_factory=lambda: prefix.Prefix(LENGTH))
  inputs, targets = jnp.asarray([[4, 5, 6]]), jnp.asarray([[0, 7, 8, 9]])
  variables = module.init(
      jax.random.PRNGKey(0), inputs, targets, targets, enable_dropout=False)
  params = variables["params"]
  assert params["decoder"]["prefix"]["prefix"].shape == (LENGTH, 2 * 2 * 8)
  whole = module.apply(
      {"params": params}, inputs, targets, enable_dropout=False)
  plain = t5.EncoderDecoder(config).apply(
      {"params": params}, inputs, targets, enable_dropout=False)
  assert np.abs(whole - plain).max() > 1e-3
  encoded = module.apply(
      {"params": params}, inputs, enable_dropout=False, method=module.encode)
  _, cache = module.apply(
      {"params": params}, encoded, inputs, targets, enable_dropout=False,
      decode=True, max_decode_length=4, mutable=["cache"],
      method=module.decode)
  for i in range(4):
    logits, cache = module.apply(
        {"params": params, **cache}, encoded, inputs, targets[:, i:i + 1],
        enable_dropout=False, decode=True, max_decode_length=4,
        mutable=["cache"], method=module.decode)
    np.testing.assert_allclose(logits[:, 0], whole[:, i], atol=1e-5)


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
