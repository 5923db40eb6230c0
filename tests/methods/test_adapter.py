"""Adapters against their formula in NumPy, and the authors' counts."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.methods import adapter, interception
from prompt_tuning.models import causal_lm, layers, t5
from prompt_tuning.train import state as state_lib

CONFIG = causal_lm.Config(
    32, 8, 2, 4, 2, 16, positions="learned", norm="layer_norm",
    mlp_activations=("gelu",), mlp_bias=True, max_positions=8)
TOKENS = jnp.asarray([[5, 6, 7, 8], [9, 3, 2, 4]])


def draw(shapes):
  random = np.random.RandomState(0)
  return jax.tree.map(
      lambda s: jnp.asarray(random.randn(*s.shape) * 0.3, jnp.float32), shapes)


def bottleneck(own, h):
  """h + up(relu(down(h))), behind a norm if there is one, in float64."""
  own = jax.tree.map(lambda x: np.asarray(x, np.float64), own)
  x = h = np.asarray(h, np.float64)
  if "norm" in own:
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    x = x * own["norm"]["scale"] + own["norm"]["bias"]
  x = np.maximum(x @ own["down"]["kernel"] + own["down"]["bias"], 0)
  return h + x @ own["up"]["kernel"] + own["up"]["bias"]


def run(delta, module, params, *arguments, **options):
  def apply(params):
    with interception.applied(delta):
      return module.apply({"params": params}, *arguments, **options)
  return jax.jit(apply)(params)


def shapes_of(delta, module, *arguments, **options):
  with interception.applied(delta):
    return jax.eval_shape(lambda: module.init(
        jax.random.PRNGKey(0), *arguments, **options))["params"]


def test_one_behind_a_projection_by_hand():
  class Holder(nn.Module):  # patterns are of whole paths

    @nn.compact
    def __call__(self, x):
      return layers.Attention(2, 4, name="attention")(x, x)

  delta = adapter.Adapter(3, "projections")
  x = draw(jax.ShapeDtypeStruct((2, 5, 8), jnp.float32))
  params = draw(shapes_of(delta, Holder(), x))
  np.testing.assert_allclose(
      run(delta, Holder(), params, x),
      bottleneck(params["attention"]["out"]["adapter"],
                 run(None, Holder(), params, x)), atol=1e-5)


def test_one_behind_a_layer_by_hand():
  """Of the last layer: the hidden states before the last norm."""
  delta = adapter.Adapter(3, "layer")
  module = causal_lm.CausalLM(dataclasses.replace(CONFIG, num_layers=1))
  params = draw(shapes_of(delta, module, TOKENS))

  def before_norm(delta):
    return run(delta, module, params, TOKENS, method=lambda m, tokens:
               m.decoder(m.token_embedder(tokens), None, None)[0])

  own = params["decoder"]["layers_0"]["adapter"]
  np.testing.assert_allclose(
      before_norm(delta), bottleneck(own, before_norm(None)), atol=1e-5)


@pytest.mark.parametrize("design", adapter.DESIGNS)
def test_scanned_and_recomputed_layers_are_the_same(design):
  delta = adapter.Adapter(3, design)
  module = causal_lm.CausalLM(CONFIG)
  params = draw(shapes_of(delta, module, TOKENS))
  want = run(delta, module, params, TOKENS)
  assert np.abs(want - run(None, module, params, TOKENS)).max() > 1e-2
  decoder = dict(params["decoder"])
  stack = [decoder.pop(f"layers_{i}") for i in range(2)]
  stacked = params | {"decoder": decoder | {
      "layers": jax.tree.map(lambda *x: jnp.stack(x), *stack)}}
  for changes in ({"remat": "full"}, {"scan_layers": True, "remat": "dots"}):
    other = causal_lm.CausalLM(dataclasses.replace(CONFIG, **changes))
    given = stacked if "scan_layers" in changes else params
    assert jax.tree.map(jnp.shape, given) == jax.tree.map(
        lambda s: s.shape, shapes_of(delta, other, TOKENS))
    np.testing.assert_allclose(
        run(delta, other, given, TOKENS), want, atol=1e-5)


# The authors' code on GPT-2 medium, a width of 100.
@pytest.mark.parametrize("design,total", [
    ("layer", 4_991_328), ("projections", 9_884_352)])
def test_sizes_are_the_published_ones(design, total):
  config = dataclasses.replace(
      CONFIG, num_layers=24, embed_dim=1024, num_heads=16, head_dim=64,
      scan_layers=True)
  flat = state_lib.flatten(shapes_of(
      adapter.Adapter(100, design), causal_lm.CausalLM(config), TOKENS))
  assert total == sum(
      x.size for path, x in flat.items() if "/adapter/" in path)


def test_t5_has_them_on_both_sides():
  module = t5.EncoderDecoder(t5.Config(32, 8, 2, 4, 16, 1, 1))
  found = {
      design: sorted({
          path.split("/adapter/")[0] for path in state_lib.flatten(shapes_of(
              adapter.Adapter(3, design), module, TOKENS, TOKENS,
              enable_dropout=False)) if "/adapter/" in path})
      for design in adapter.DESIGNS}
  assert found["layer"] == ["decoder/layers_0", "encoder/layers_0"]
  assert found["projections"] == [
      "decoder/layers_0/encoder_decoder_attention/out",
      "decoder/layers_0/mlp/wo", "decoder/layers_0/self_attention/out",
      "encoder/layers_0/attention/out", "encoder/layers_0/mlp/wo"]


def test_bad_input():
  for options, macro in (({"width": 0}, "ADAPTER_WIDTH"),
                         ({"design": "both"}, "ADAPTER_DESIGN")):
    with pytest.raises(UserError, match=macro):
      adapter.Adapter(**options)
  with pytest.raises(UserError, match="cannot be merged"):
    adapter.Adapter().merge({})
  adapter.check_frozen(adapter.Adapter(), set())
  adapter.check_frozen(None, {"a"})
  with pytest.raises(UserError, match="also matches a"):
    adapter.check_frozen(adapter.Adapter(), {"b", "a"})
