"""Tests of methods.prefix_start. Oracles: the frozen model, a closed form."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.methods import prefix, prefix_start
from prompt_tuning.models import causal_lm, t5

CONFIG = causal_lm.Config(32, 8, 2, 4, 2, 16, num_kv_heads=2)
WIDTH = 2 * 2 * 2 * 2  # L * 2 * K * D
WORDS = [5, 9, 3]
TEXT = jnp.asarray([[7, 8, 2, 4]])


def words(*ids):
  return prefix_start.from_words("words", types.SimpleNamespace(
      encode=lambda text: list(ids)))


def model(factory):
  """A module, and its parameters as they are drawn."""
  module = causal_lm.CausalLM(CONFIG, prefix_factory=factory)
  init = jax.jit(lambda: module.init(jax.random.PRNGKey(0), TEXT)["params"])
  return module, init()


def with_prefix(params, values):
  own = {path.removeprefix("decoder/prefix/"): value
         for path, value in values.items()}
  return params | {"decoder": params["decoder"] | {"prefix": own}}


def test_a_prefix_of_words_is_the_words_in_front():
  """The text's logits are the plain model's behind the same tokens."""
  module, params = model(
      lambda: prefix.Prefix(3, start=words(*WORDS)))
  values = prefix_start.values(module, params)
  assert list(values) == ["decoder/prefix/prefix"]
  got = module.apply({"params": with_prefix(params, values)}, TEXT)
  both = jnp.concatenate([jnp.asarray([WORDS]), TEXT], axis=1)
  want = causal_lm.CausalLM(CONFIG).apply({"params": params}, both)[:, 3:]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_short_words_are_repeated():
  module, params = model(lambda: prefix.Prefix(5, start=words(*WORDS)))
  [table] = prefix_start.values(module, params).values()
  longer = words(5, 9, 3, 5, 9)(module, params, 5)
  np.testing.assert_allclose(table, longer, atol=1e-6)


def test_an_mlp_is_fitted_by_adam():
  """One layer's bias alone fits a constant; its steps are Adam's by hand."""
  made = prefix.ProjectedPrefix(2, 3)
  params = made.init(jax.random.PRNGKey(0), CONFIG)["params"]
  own = {f"{n}/{k}" if n != "embedding" else n: v for n in params
         for k, v in (params[n].items() if n != "embedding" else [("", params[
             n])])}
  table = prefix.fold(made, params, CONFIG) + 1.0
  one = prefix_start.fitted(made, own, table, CONFIG, steps=1)
  assert set(one) == {
      f"mlp_{i}/{name}" for i in range(2) for name in ("kernel", "bias")}
  # Adam's first step is the rate, against the gradient's sign.
  np.testing.assert_allclose(
      one["mlp_1/bias"] - own["mlp_1/bias"],
      np.full(WIDTH, prefix_start.FIT_LEARNING_RATE), rtol=1e-3)

  def distance(values):
    flat = own | values
    tree = {"embedding": flat["embedding"]} | {
        f"mlp_{i}": {k: flat[f"mlp_{i}/{k}"] for k in ("kernel", "bias")}
        for i in range(2)}
    return float(jnp.mean(jnp.square(
        prefix.fold(made, tree, CONFIG) - table)))

  many = prefix_start.fitted(made, own, table, CONFIG)
  assert distance(many) < 0.9 * distance({}) == pytest.approx(0.9, rel=1e-3)


def test_what_is_given_or_has_no_start_stays():
  start = words(*WORDS)
  for factory, without in (
      (functools.partial(prefix.Prefix, 3), ()),
      (functools.partial(prefix.Prefix, 3, start=start),
       ("decoder/prefix/prefix",))):
    module, params = model(factory)
    assert not prefix_start.values(module, params, frozenset(without))


def test_another_models_prefix_is_refused(tmp_path):
  np.save(tmp_path / "prefix.npy", np.zeros((3, 24), np.float32))
  start = prefix_start.from_file(str(tmp_path / "prefix.npy"), "unread")
  module, params = model(lambda: prefix.Prefix(3, start=start))
  with pytest.raises(UserError, match=r"\(3, 24\).*\(3, 16\).*2 layers"):
    prefix_start.values(module, params)


def test_words_of_no_tokens_or_for_t5():
  with pytest.raises(UserError, match="PREFIX_TEXT"):
    words()
  with pytest.raises(UserError, match="decoder-only"):
    words(1)(t5.EncoderDecoder(t5.Config(8, 8, 2, 4, 8, 1, 1)), {}, 2)
