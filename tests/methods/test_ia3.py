"""(IA)3 against PEFT, its closed form and merged weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.methods import ia3, interception
from prompt_tuning.models import layers
from prompt_tuning.train import state as state_lib

DELTA = ia3.Ia3()

pytestmark = pytest.mark.usefixtures("highest_precision")


def assert_relative(found, expected, tolerance=1e-5):
  np.testing.assert_allclose(
      found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# ----------------------------------------------------------- one Dense, by hand


# The Dense stands alone, so its path is "".
OUTPUT = ia3.Ia3(targets=("",), feedforward_targets=())
INPUT = ia3.Ia3(targets=("",), feedforward_targets=("",))


@pytest.mark.parametrize("delta, width", [(OUTPUT, 4), (INPUT, 5)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_formula(delta, width, dtype):
  """A bias is scaled with the output; an input's scale leaves it alone."""
  random = np.random.RandomState(0)
  kernel, bias, scale, x = (jnp.asarray(random.randn(*shape), jnp.float32)
                            for shape in ((5, 4), (4,), (width,), (3, 5)))
  module = layers.Dense(4, ("embed", "mlp"), dtype, use_bias=True)
  params = {"kernel": kernel, "bias": bias, "ia3": {"scale": scale}}

  def run(params, delta, *arguments, method=None):
    with interception.applied(delta):
      return module.apply({"params": params}, *arguments, method=method)

  expected = ((x * scale) @ kernel + bias if delta is INPUT
              else (x @ kernel + bias) * scale)
  found = run(params, delta, x)
  assert found.dtype == dtype
  tolerance = 1e-5 if dtype == jnp.float32 else 0.1
  np.testing.assert_allclose(
      found.astype(np.float32), expected, atol=tolerance)
  merged = delta.merge(params)
  assert set(merged) == {"kernel", "bias"}
  np.testing.assert_allclose(
      run(merged, None, x).astype(np.float32), expected, atol=tolerance)
  np.testing.assert_allclose(
      run(params, delta, 5, method=module.kernel).astype(np.float32),
      merged["kernel"], atol=tolerance)


# ------------------------------------------------------------------ in a model


def test_training_starts_from_the_base():
  scale = ia3.Scale(5, "mlp").init(jax.random.key(0))["params"]["scale"]
  assert scale.dtype == np.float32
  np.testing.assert_array_equal(scale, np.ones(5))


def test_targets_get_a_scale_and_nothing_else_does(delta_t5):
  shapes, _ = delta_t5.model(DELTA).abstract()
  flat = {path: leaf.shape for path, leaf in state_lib.flatten(shapes).items()
          if "ia3" in path}
  assert flat["encoder/layers_0/attention/key/ia3/scale"] == (12,)
  assert flat["decoder/layers_0/mlp/wo/ia3/scale"] == (10,)
  assert len(flat) == 2 * 3 + 5


def test_logical_axes_are_the_kernels(delta_t5):
  _, axes = delta_t5.model(DELTA, scan_layers=True).abstract()
  layer = axes["encoder"]["layers"]
  assert layer["attention"]["key"]["ia3"]["scale"] == ("layers", "joined_kv")
  assert layer["mlp"]["wo"]["ia3"]["scale"] == ("layers", "mlp")


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize("options, words", [
    ({"targets": ".*key"}, ["Ia3.targets", "['.*key']"]),
    ({"feedforward_targets": ["*wo"]}, ["Ia3.feedforward_targets", "*wo"]),
    ({"targets": (), "feedforward_targets": ()}, ["neither"])])
def test_bad_options_are_named(options, words):
  with pytest.raises(UserError) as error:
    ia3.Ia3(**options)
  assert all(word in str(error.value) for word in words)


def test_a_pattern_that_matches_nothing_is_named(delta_t5):
  model = delta_t5.model(ia3.Ia3(feedforward_targets=(".*/w2",)))
  with pytest.raises(UserError, match=r"w2.*layers_0/"):
    model.abstract()


# ----------------------------------------------------------------------- PEFT


@pytest.mark.parity
@pytest.mark.parametrize("family, outputs, inputs", [
    ("t5", ["k", "v"], ["wo"]),
    ("gpt2", ["c_attn"], ["mlp.c_proj"]),
    ("llama", ["k_proj", "v_proj"], ["down_proj"])])
def test_logits_and_gradients_are_pefts(
    with_peft, monkeypatch, family, outputs, inputs):
  peft = pytest.importorskip("peft")
  monkeypatch.setattr(layers, "few_queries", lambda *_: True)
  both = with_peft(family, peft.IA3Config(
      target_modules=outputs + inputs, feedforward_modules=inputs,
      fan_in_fan_out=family == "gpt2",
      task_type="SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"))
  expected, theirs = both.theirs()
  logits, ours = both.ours()
  assert_relative(logits, expected)
  largest = max(np.abs(g).max() for g in theirs.values())
  assert largest > 1e-3
  for (module, _), gradient in theirs.items():
    found = np.empty(gradient.size)
    for path, places in both.parts(module).items():
      scale = ours.pop(f"{path}/ia3/scale")
      found[places if len(scale) == len(places) else slice(None)] = scale
    np.testing.assert_allclose(
        found, gradient.ravel(), rtol=0, atol=1e-5 * largest, err_msg=module)
  assert not ours
