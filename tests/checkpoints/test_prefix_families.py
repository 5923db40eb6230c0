"""A prefix of GPT-2 and of grouped heads: logits and its gradients.

Oracle: transformers with the prefix as `past_key_values`, committed for one
seed and computed live for another.
"""

import functools
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning.checkpoints import base
from prompt_tuning.methods import prefix
from prompt_tuning.models import causal_lm

CASES = ("gpt2", "llama")

pytestmark = pytest.mark.usefixtures("highest_precision")


@pytest.fixture
def highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


@pytest.fixture(scope="module")
def maker(expectations, causal_lm_maker):
  """The script that wrote the expectations."""
  path = expectations.parent / "make_prefix_expectations.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules["make_causal_lm_expectations"] = causal_lm_maker
  try:
    spec.loader.exec_module(module)
  finally:
    del sys.modules["make_causal_lm_expectations"]
  return module


def ours(folder, maker, causal_lm_maker, seed):
  """Logits [B, T, V] and the gradient of the table, as the maker has them."""
  config = causal_lm.Config(**base.open_base(folder).config)
  ids, visible, _ = causal_lm_maker.tokens(seed, config.embed_dim)
  table, weights = maker.drawn(
      2 * config.num_layers * config.kv_heads, config.head_dim,
      (*ids.shape, causal_lm_maker.VOCABULARY))
  plain = causal_lm.CausalLM(config)
  frozen = base.load_base(folder, jax.eval_shape(
      lambda: plain.init(jax.random.key(0), ids))["params"], np.float32)
  module = causal_lm.CausalLM(
      config, prefix_factory=functools.partial(prefix.Prefix, maker.LENGTH))

  def total(table):
    decoder = frozen["decoder"] | {"prefix": {"prefix": table}}
    logits = module.apply({"params": frozen | {"decoder": decoder}}, ids)
    return jnp.sum((logits * weights)[visible]), logits

  gradient, logits = jax.jit(jax.grad(total, has_aux=True))(table)
  return logits[visible], gradient


def assert_equal(found, expected):
  for got, want in zip(found, expected):
    np.testing.assert_allclose(
        got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_that_transformers_gave(
    case, tmp_path, maker, causal_lm_maker, write_family, expectations):
  seed = int(write_family(tmp_path, case)["seed"])
  with np.load(expectations / f"prefix_{case}.npz") as file:
    expected = file["logits"], file["gradient"]
  assert_equal(ours(tmp_path, maker, causal_lm_maker, seed), expected)


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(
    case, tmp_path, maker, causal_lm_maker):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  seed = 77
  logits, gradient = maker.of_transformers(case, seed)
  model = causal_lm_maker.model_of_transformers(case, seed)
  safetensors.numpy.save_file(
      causal_lm_maker.weights(causal_lm_maker.shapes_of(model), seed),
      tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(
      model.config.to_json_string(use_diff=False))
  _, visible, _ = causal_lm_maker.tokens(seed)
  assert_equal(
      ours(tmp_path, maker, causal_lm_maker, seed),
      (logits[visible], gradient))
