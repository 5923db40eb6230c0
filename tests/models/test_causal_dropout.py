"""Dropout of decoder-only models: where PyTorch's GPT-2 has it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.checkpoints import base
from prompt_tuning.models import causal_lm, layers

CONFIG = causal_lm.Config(
    vocab_size=50, embed_dim=12, num_layers=2, num_heads=3, head_dim=4,
    mlp_dim=20, max_positions=16, positions="learned", norm="layer_norm",
    mlp_activations=("gelu",), qkv_bias=True, attention_out_bias=True,
    mlp_bias=True, dropout_rate=0.25)
TOKENS = np.arange(14).reshape(2, 7) * 3 % 50


def _params(module):
  shapes = jax.eval_shape(
      module.init, jax.random.PRNGKey(0), TOKENS)["params"]
  random = np.random.RandomState(0)
  return jax.tree.map(
      lambda s: jnp.asarray(0.4 * random.randn(*s.shape), s.dtype), shapes)


@pytest.mark.parametrize("changes", [
    {}, {"scan_layers": True}, {"parallel_block": True},
    {"fused_attention": True}])
def test_only_steps_with_an_rng_drop_and_each_draws_its_own(changes):
  config = dataclasses.replace(CONFIG, **changes)
  module = causal_lm.CausalLM(config)
  params = _params(module)
  run = jax.jit(
      lambda rngs: module.apply({"params": params}, TOKENS, rngs=rngs))
  one, other = ({"dropout": jax.random.key(i)} for i in (0, 1))
  dropped = run(one)
  np.testing.assert_array_equal(dropped, run(one))
  assert not np.allclose(dropped, run(other))
  plain = causal_lm.CausalLM(dataclasses.replace(config, dropout_rate=0.0))
  whole = jax.jit(
      lambda rngs: plain.apply({"params": params}, TOKENS, rngs=rngs))
  np.testing.assert_array_equal(run({}), whole({}))
  np.testing.assert_array_equal(whole(one), whole({}))
  assert not np.allclose(dropped, whole({}))


class Dropped(nn.Module):
  """`layers.element_dropout` where Linen finds the rng."""

  rate: float

  @nn.compact
  def __call__(self, x):
    return layers.element_dropout(self, x, self.rate)


def test_each_element_is_drawn_by_itself():
  x = jnp.ones((4, 50, 60))
  got = np.asarray(Dropped(0.25).apply(
      {}, x, rngs={"dropout": jax.random.key(0)}))
  assert set(np.unique(got)) == {0.0, np.float32(1 / 0.75)}
  # Of 12,000 draws; the standard deviation is 0.004.
  assert abs((got == 0).mean() - 0.25) < 0.016
  assert len(np.unique(got.reshape(-1, 60), axis=0)) == 200
  np.testing.assert_array_equal(Dropped(0.25).apply({}, x), x)


@pytest.mark.parity
def test_places_are_those_of_transformers(tmp_path, monkeypatch):
  """The same masks in the same order on both sides give the same logits."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
      vocab_size=50, n_embd=12, n_layer=2, n_head=3, n_inner=20,
      n_positions=16, attn_implementation="eager", embd_pdrop=0.25,
      resid_pdrop=0.25, attn_pdrop=0.25, initializer_range=0.4))
  theirs.save_pretrained(tmp_path)
  drawn = []

  def mask(shape):
    """0 or 4/3: the next one, of [B, T, H] or [B, N, T, S]."""
    random = np.random.RandomState(len(drawn))
    drawn.append(tuple(shape))
    return (random.rand(*shape) < 0.75).astype(np.float32) / 0.75

  def torchs(x, p=0.5, training=True, inplace=False):
    assert training and p == 0.25
    return x * torch.from_numpy(mask(x.shape))

  def ours(module, x, rate):
    if not layers.drops(module, rate):  # `init`, which has no rng for it
      return x
    if x.ndim == 3:
      return x * mask(x.shape)
    heads, batch, _, length, keys = x.shape  # [K, B, G = 1, T, S]
    return x * np.swapaxes(
        mask((batch, heads, length, keys)), 0, 1)[:, :, None]

  monkeypatch.setattr(torch.nn.functional, "dropout", torchs)
  monkeypatch.setattr(layers, "element_dropout", ours)
  with torch.no_grad():
    want = theirs.train()(torch.from_numpy(TOKENS)).logits.numpy()
  expected, drawn[:] = list(drawn), []
  assert expected == [(2, 7, 12)] + 2 * [
      (2, 3, 7, 7), (2, 7, 12), (2, 7, 12)]
  module = causal_lm.CausalLM(CONFIG)
  shapes = jax.eval_shape(
      module.init, jax.random.PRNGKey(0), TOKENS)["params"]
  params = base.load_base(tmp_path, shapes, np.float32)
  drawn.clear()
  with jax.default_matmul_precision("highest"):
    got = module.apply(
        {"params": params}, TOKENS, rngs={"dropout": jax.random.key(0)})
  assert drawn == expected
  np.testing.assert_allclose(got, want, atol=2e-5)
