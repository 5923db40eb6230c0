"""Tests of methods.p_tuning. Oracles: torch's LSTM and MLP, inside PEFT's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import methods
from prompt_tuning.methods import linear, p_tuning
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import sharding

LENGTH, WIDTH, HIDDEN = 5, 6, 4
TOKENS, EMBEDDED = jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3, WIDTH))
MODULES = {
    "MLP": p_tuning.MlpPrompt(LENGTH, HIDDEN),
    "LSTM": p_tuning.LstmPrompt(LENGTH, HIDDEN)}


def init(module, seed=0):
  return module.init(jax.random.PRNGKey(seed), TOKENS, EMBEDDED)


def test_lstm_is_the_recurrence():
  """By hand, position by position."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(LENGTH, WIDTH))
  params = {
      "input_kernel": rng.normal(size=(WIDTH, 4 * HIDDEN)),
      "hidden_kernel": rng.normal(size=(HIDDEN, 4 * HIDDEN)),
      "bias": rng.normal(size=4 * HIDDEN)}

  def sigmoid(y):
    return 1 / (1 + np.exp(-y))

  def by_hand(order):
    hidden, cell, out = np.zeros(HIDDEN), np.zeros(HIDDEN), {}
    for at in order:
      i, f, g, o = np.split(
          x[at] @ params["input_kernel"] + hidden @ params["hidden_kernel"]
          + params["bias"], 4)
      cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
      hidden = out[at] = sigmoid(o) * np.tanh(cell)
    return np.stack([out[at] for at in range(LENGTH)])

  arrays = jax.tree.map(jnp.float32, params)
  for reverse, order in ((False, range(LENGTH)),
                         (True, range(LENGTH - 1, -1, -1))):
    np.testing.assert_allclose(
        p_tuning.lstm(jnp.float32(x), arrays, reverse), by_hand(order),
        rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_folded_is_the_prompt_in_use(name):
  module = train_prompts.Prompt(MODULES[name])
  params = init(module)["params"]
  out = module.apply({"params": params}, TOKENS, EMBEDDED)
  table = methods.folded(MODULES[name], params["prompt"], WIDTH)
  assert table.shape == (LENGTH, WIDTH)
  np.testing.assert_array_equal(out[1, :LENGTH], table)
  np.testing.assert_array_equal(out[:, LENGTH:], EMBEDDED)


@pytest.mark.parametrize("name", MODULES)
def test_every_axis_has_a_rule_and_stays_whole(name):
  variables = init(MODULES[name])
  axes = jax.tree.leaves(
      variables["params_axes"], is_leaf=lambda leaf: hasattr(leaf, "names"))
  assert len(axes) == len(jax.tree.leaves(variables["params"]))
  sizes = {"data": 2, "fsdp": 2, "model": 2}
  for leaf in axes:
    spec = sharding.partition_spec(leaf.names, (8,) * len(leaf.names), sizes)
    assert all(axis is None for axis in spec)


def test_gradients_reach_every_parameter():
  for module in MODULES.values():
    params = init(module)["params"]
    gradients = jax.grad(lambda p, m=module: jnp.sum(
        jnp.square(methods.folded(m, p, WIDTH) - 1)))(params)
    assert all(np.any(g) for g in jax.tree.leaves(gradients))


def test_starts_like_torch():
  kernel = linear.uniform_fan_in(16)(jax.random.PRNGKey(0), (16, 4096))
  assert abs(np.abs(kernel).max() - 0.25) < 1e-3
  assert abs(np.std(kernel) - 0.25 / math.sqrt(3)) < 1e-3


def torch_weights(state, name):
  """PEFT's state dict as our parameters."""
  state = {key: value.numpy() for key, value in state.items()}

  def dense(i):
    return {"kernel": state[f"mlp_head.{i}.weight"].T,
            "bias": state[f"mlp_head.{i}.bias"]}

  params = {"embedding": state["embedding.weight"]}
  if name == "MLP":
    return params | {f"mlp_{n}": dense(2 * n) for n in range(3)}
  for i in range(2):
    for ours, theirs in (("forward", ""), ("backward", "_reverse")):
      w_in, w_hidden, b_in, b_hidden = (
          state[f"lstm_head.{kind}_l{i}{theirs}"] for kind in
          ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
      params[f"lstm_{i}_{ours}"] = {
          "input_kernel": w_in.T, "hidden_kernel": w_hidden.T,
          "bias": b_in + b_hidden}  # torch has two that are only ever added
  return params | {f"mlp_{n}": dense(2 * n) for n in range(2)}


@pytest.mark.parity
@pytest.mark.parametrize("name", MODULES)
def test_equals_the_encoder_of_peft(name):
  torch = pytest.importorskip("torch")
  peft = pytest.importorskip("peft")
  torch.manual_seed(0)
  encoder = peft.PromptEncoder(peft.PromptEncoderConfig(
      num_virtual_tokens=LENGTH, token_dim=WIDTH,
      num_transformer_submodules=1, encoder_hidden_size=HIDDEN,
      encoder_reparameterization_type=name))
  with torch.no_grad():
    expected = encoder(torch.arange(LENGTH)[None])[0].numpy()
  params = torch_weights(encoder.state_dict(), name)
  shapes = jax.tree.map(lambda x: x.shape, init(MODULES[name])["params"])
  assert jax.tree.map(lambda x: x.shape, params) == shapes
  np.testing.assert_allclose(
      methods.folded(MODULES[name], params, WIDTH), expected, atol=1e-6)
