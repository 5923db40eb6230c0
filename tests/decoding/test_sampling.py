"""Sampling: what is drawn from, how often, and what a draw depends on.

Oracles: Hugging Face's logits warpers, sets of tokens worked out by hand, and
the closed form of each sequence's probability.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.decoding import greedy, sampling
from prompt_tuning.errors import UserError

EOS = 1
LENGTH = 4


def draw(model, seed=0, **options):
  """Jitted `sample` of a `HistoryModel`, as numpy arrays."""
  options = {"max_length": LENGTH, "eos_id": EOS} | options
  return jax.tree.map(np.asarray, jax.jit(
      lambda cache, rng: sampling.sample(
          model.step, cache, rng, batch_size=len(model.table), **options)
  )(model.cache, jax.random.key(seed)))


@pytest.mark.parametrize("top_k, kept", [
    (1, [2]), (2, [2, 0, 3]), (3, [2, 0, 3]), (4, [2, 0, 3, 1]), (9, range(4)),
])
def test_top_k_keeps_ties_with_the_last(top_k, kept):
  probs = np.array([0.2, 0.1, 0.5, 0.2], np.float32)
  logits = sampling.keep_top_k(jnp.log(probs), top_k)
  assert np.flatnonzero(np.isfinite(logits)).tolist() == sorted(kept)
  np.testing.assert_array_equal(
      logits[np.array(kept)], jnp.log(probs)[np.array(kept)])


@pytest.mark.parametrize("top_p, kept", [
    (1e-30, [2]),
    (0.49, [2]),
    (0.51, [2, 0]),  # 0 and 3 are equally likely: the lower id comes first
    (0.69, [2, 0]),
    (0.71, [2, 0, 3]),
    (0.89, [2, 0, 3]),
    (0.91, [2, 0, 3, 1]),
])
def test_top_p_keeps_the_token_that_crosses(top_p, kept):
  probs = np.array([0.2, 0.1, 0.5, 0.2], np.float32)
  logits = sampling.keep_top_p(jnp.log(probs), top_p)
  assert np.flatnonzero(np.isfinite(logits)).tolist() == sorted(kept)
  np.testing.assert_array_equal(
      logits[np.array(kept)], jnp.log(probs)[np.array(kept)])


@pytest.mark.parity
@pytest.mark.parametrize("temperature, top_k, top_p", [
    (1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 1, 1.0),
    (1.0, 0, 0.9), (1.0, 0, 0.3), (1.0, 0, 0.01), (1.3, 20, 0.8),
    (0.5, 40, 0.95),
])
def test_processed_logits_equal_hugging_face(temperature, top_k, top_p):
  torch = pytest.importorskip("torch")
  process = pytest.importorskip("transformers.generation.logits_process")
  logits = np.random.default_rng(0).normal(size=(64, 50), scale=3.0).astype(
      np.float32)
  expected = process.TemperatureLogitsWarper(temperature)(
      None, torch.from_numpy(logits))
  if top_k:
    expected = process.TopKLogitsWarper(top_k)(None, expected)
  if top_p < 1:
    expected = process.TopPLogitsWarper(top_p)(None, expected)
  found = sampling.process(jnp.asarray(logits), temperature, top_k, top_p)
  np.testing.assert_array_equal(np.isneginf(found), torch.isneginf(expected))
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("temperature, top_k, top_p", [
    (1.0, 0, 1.0), (0.6, 2, 1.0), (1.4, 3, 0.8)])
def test_sequences_are_drawn_as_often_as_their_probability(
    history_model, temperature, top_k, top_p):
  draws, length = 20_000, 2
  model = history_model(batch=1, seed=3, length=length, scale=1.0)
  tokens, _ = draw(
      model, max_length=length, num_samples=draws, temperature=temperature,
      top_k=top_k, top_p=top_p)

  def probs_after(start):
    logits = jnp.asarray(model.log_probs_after(0, start))
    return np.asarray(jax.nn.softmax(
        sampling.process(logits, temperature, top_k, top_p)), np.float64)

  for pair in itertools.product(range(4), repeat=2):
    if pair[0] == EOS:
      prob = probs_after(())[EOS] * (pair[1] == 0)
    else:
      prob = probs_after(())[pair[0]] * probs_after(pair[:1])[pair[1]]
    frequency = np.mean(np.all(tokens[0] == pair, axis=-1))
    # 4 standard deviations; nothing at all where the probability is 0.
    assert abs(frequency - prob) <= 4 * np.sqrt(prob * (1 - prob) / draws)


def test_scores_are_the_models_own_log_probabilities(history_model):
  model = history_model(batch=3, seed=4)
  tokens, scores = draw(model, num_samples=5, temperature=0.7, top_k=2)
  for row, sample in itertools.product(range(3), range(5)):
    drawn = tokens[row, sample].tolist()
    if EOS in drawn:
      end = drawn.index(EOS) + 1
      assert not any(drawn[end:])
      drawn = drawn[:end]
    np.testing.assert_allclose(
        scores[row, sample], model.log_prob(row, drawn), rtol=1e-5)
  assert np.any(tokens == EOS) and len(np.unique(tokens.reshape(15, -1))) > 1


def test_same_seed_gives_the_same_bits_and_another_seed_others(history_model):
  model = history_model(batch=3, seed=5)
  run = jax.jit(lambda rng: sampling.sample(
      model.step, model.cache, rng, batch_size=3, max_length=LENGTH,
      eos_id=EOS, num_samples=4, temperature=1.2, top_p=0.9))
  first, again = run(jax.random.key(0)), run(jax.random.key(0))
  np.testing.assert_array_equal(first[0], again[0])
  np.testing.assert_array_equal(first[1], again[1])
  assert np.any(first[0] != run(jax.random.key(1))[0])


@pytest.mark.parametrize("batch, num_samples, length", [
    (1, 3, 4), (3, 1, 4), (3, 3, 2)])
def test_a_draw_depends_on_its_row_sample_and_position_alone(
    history_model, batch, num_samples, length):
  model = history_model(batch=8, seed=6)
  tokens, _ = draw(model, num_samples=3)
  model.table = model.table[:batch]
  part, _ = draw(model, num_samples=num_samples, max_length=length)
  np.testing.assert_array_equal(part, tokens[:batch, :num_samples, :length])


def test_equal_rows_draw_independently(history_model):
  model = history_model(batch=64, seed=7, scale=0.1)
  model.table[:] = model.table[:1]
  tokens, _ = draw(model, num_samples=2)
  by_row = tokens[:, 0].tolist()
  assert len({tuple(drawn) for drawn in by_row}) > 20
  assert np.mean(tokens[:, 0, 0] == tokens[:, 1, 0]) < 0.6


def test_neither_jit_nor_the_style_of_the_key_changes_a_draw(history_model):
  model = history_model(batch=2, seed=8)
  tokens, _ = sampling.sample(
      model.step, model.cache, jax.random.PRNGKey(0), batch_size=2,
      max_length=LENGTH, eos_id=EOS)
  np.testing.assert_array_equal(tokens, draw(model, 0)[0])


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-40])
def test_temperature_zero_is_greedy(history_model, temperature):
  model = history_model(batch=3, seed=9)
  tokens, scores = draw(
      model, temperature=temperature, num_samples=2, top_k=3, top_p=0.5)
  expected_tokens, expected_scores = greedy.greedy(
      model.step, model.cache, batch_size=3, max_length=LENGTH, eos_id=EOS)
  for sample in range(2):
    np.testing.assert_array_equal(tokens[:, sample], expected_tokens)
    np.testing.assert_allclose(
        scores[:, sample], expected_scores, rtol=1e-6)


@pytest.mark.parametrize("name, value", [
    ("temperature", -0.1), ("temperature", float("nan")),
    ("temperature", float("inf")), ("top_k", -1), ("top_k", 2.5),
    ("top_p", 0.0), ("top_p", 1.1), ("num_samples", 0)])
def test_arguments_out_of_range_are_refused(history_model, name, value):
  with pytest.raises(UserError, match=f"sample.{name} is"):
    draw(history_model(batch=1), **{name: value})
