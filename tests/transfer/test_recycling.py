"""Maps between two models' embeddings.

Oracles: closed forms, and what the original's recyclers computed from the same
tables (run with jax 0.10.2 and tensorflow; the numbers alone are here).
"""

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.transfer import recycling

# Of default_rng(7): source [23, 5], target [23, 4], prompt [3, 5] times 10.
ORIGINAL = {
    "v2v-nn": [
        [-0.65498984, 2.64013815, -0.07642616, -0.77394587],
        [11.6710825, -3.47229552, -15.30553818, 9.20422554],
        [-0.34435841, -0.93377608, -1.41041768, -6.40271807]],
    "v2v-lin": [
        [1.0303148, 7.65607548, -4.36234045, 1.71279371],
        [9.3886957, -6.91336346, -10.21627045, 11.64212990],
        [9.3591957, 7.74735165, 0.95272052, -1.13048291]],
    "lin-comb": [
        [1.03031456, 7.65607405, -4.36233902, 1.71279240],
        [9.38869476, -6.91336393, -10.21626949, 11.64212894],
        [9.35919666, 7.74735117, 0.95272058, -1.13048232]]}
ORIGINAL_LOSS = {"v2v-nn": 0.3669881522655487, "v2v-lin": 0.32814058661460876}


@pytest.fixture(scope="module")
def tables():
  draw = np.random.default_rng(7)
  return (draw.normal(size=(23, 5)).astype(np.float32),
          draw.normal(size=(23, 4)).astype(np.float32),
          draw.normal(size=(3, 5)).astype(np.float32) * 10)


@pytest.mark.parametrize("recycler", recycling.RECYCLERS)
def test_numbers_are_the_originals(tables, recycler):
  """Also with a last batch that is smaller."""
  source, target, prompt = tables
  options = {"hidden_scale": 3, "batch_size": 6, "epochs": 4,
             "learning_rate": 1e-2} if recycler == "v2v-nn" else {}
  found, left = recycling.recycle(prompt, source, target, recycler, **options)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, ORIGINAL[recycler], rtol=2e-5, atol=2e-5)
  if recycler in ORIGINAL_LOSS:
    assert left == pytest.approx(
        ORIGINAL_LOSS[recycler] / (target.var(axis=0).mean() / 2), rel=1e-5)


def test_linear_is_least_squares(tables):
  source, target, prompt = tables
  expected = prompt @ np.linalg.solve(source.T @ source, source.T @ target)
  found, _ = recycling.recycle(prompt, source, target, "v2v-lin")
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recycler", ["v2v-lin", "lin-comb"])
def test_a_linear_map_is_recovered(tables, recycler):
  source, _, prompt = tables
  true = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
  found, left = recycling.recycle(prompt, source, source @ true, recycler)
  np.testing.assert_allclose(found, prompt @ true, rtol=1e-4, atol=1e-5)
  assert left < 1e-10


def test_few_words_give_the_smallest_map(tables):
  """Fewer words than features: the part that no word shows is dropped."""
  source, target, _ = tables
  matrix = recycling.linear(source[:3], target[:3])
  np.testing.assert_allclose(source[:3] @ matrix, target[:3], atol=1e-5)
  unseen = np.linalg.svd(source[:3])[2][3:]
  np.testing.assert_allclose(unseen @ matrix, 0, atol=1e-5)


def test_a_network_is_two_layers(tables):
  source, target, _ = tables
  network, params = recycling.fit(source, target, 2, epochs=1)
  first, second = (params["params"][f"Dense_{i}"] for i in range(2))
  assert first["kernel"].shape == (5, 8)
  hidden = np.maximum(source @ first["kernel"] + first["bias"], 0)
  np.testing.assert_allclose(
      network.apply(params, source),
      hidden @ second["kernel"] + second["bias"], rtol=1e-4, atol=1e-5)


def test_loss_that_is_not_finite():
  with pytest.raises(errors.UserError, match="lower --learning_rate"):
    recycling.fit(
        np.ones((4, 2), np.float32), np.full((4, 2), 3e38, np.float32),
        epochs=1, learning_rate=1.0)


def test_support():
  table = np.arange(20.0).reshape(10, 2)
  np.testing.assert_array_equal(
      recycling.support(table, "base", [9, 4, 7, 1], 2, 1), table[[4, 7]])
  np.testing.assert_array_equal(
      recycling.support(table, "base", None, 3, 5), table[5:8])
  for words, count, offset, said in (
      (None, 6, 5, "want words of 10"), ([1], 0, 0, "want words of 1"),
      (None, 2, -1, "want words of 10"), ([1, 10], 2, 0, "the id 10, but")):
    with pytest.raises(errors.UserError, match=said):
      recycling.support(table, "base", words, count, offset)


def test_word_lists(tmp_path):
  path = tmp_path / "words.json"
  path.write_text('{"12": "to", "8": "the", "100": "a"}')
  assert recycling.read_words(path) == [12, 8, 100]
  for text, said in (("[1, 2]", "is no word list"), ('{"a": 1}', "is no word"),
                     ("{", "is damaged")):
    path.write_text(text)
    with pytest.raises(errors.UserError, match=said):
      recycling.read_words(path)
  with pytest.raises(errors.UserError, match="is missing"):
    recycling.read_words(tmp_path / "absent")


def test_loss_is_half_the_mean_square():
  assert recycling.loss(jnp.array([1.0, 5.0]), jnp.array([1.0, 2.0])) == 2.25
