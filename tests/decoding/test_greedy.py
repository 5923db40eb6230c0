"""Greedy search and the loop that it shares with sampling.

Oracles: the most likely token recomputed in numpy from the whole history, and
Hugging Face `generate`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.decoding import greedy

EOS = 1
LENGTH = 4


def search(model, **options):
  """Jitted `greedy` of a `HistoryModel`, as numpy arrays."""
  options = {"max_length": LENGTH, "eos_id": EOS} | options
  return jax.tree.map(np.asarray, jax.jit(
      lambda cache: greedy.greedy(
          model.step, cache, batch_size=len(model.table), **options)
  )(model.cache))


def recomputed(model, row):
  """(tokens without padding, score), one numpy argmax at a time."""
  tokens, score = [], 0.0
  while len(tokens) < LENGTH and EOS not in tokens:
    log_probs = model.log_probs_after(row, tokens)
    tokens.append(int(np.argmax(log_probs)))
    score += log_probs[tokens[-1]]
  return tokens, score


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_equals_argmax_recomputed_over_the_history(history_model, batch):
  model = history_model(batch, seed=1)
  tokens, scores = search(model)
  lengths = set()
  assert tokens.dtype == np.int32 and scores.dtype == np.float32
  for row in range(batch):
    expected, score = recomputed(model, row)
    lengths.add(len(expected))
    assert tokens[row].tolist() == expected + [0] * (LENGTH - len(expected))
    np.testing.assert_allclose(scores[row], score, rtol=1e-5, atol=1e-6)
  assert batch < 16 or lengths == {1, 2, 3, 4}


def test_an_example_does_not_depend_on_its_batch(history_model):
  model = history_model(batch=8, seed=2)
  tokens, scores = search(model)
  model.table = model.table[:3]
  part_tokens, part_scores = search(model)
  np.testing.assert_array_equal(part_tokens, tokens[:3])
  np.testing.assert_array_equal(part_scores, scores[:3])


def test_stops_when_all_rows_have_ended(history_model):
  model = history_model(batch=3, seed=3)
  model.table[:, :1, :, EOS] = -20.0
  model.table[:, 1:, :, EOS] = 20.0
  calls = []

  def counting_step(ids, cache):
    jax.debug.callback(lambda: calls.append(1))
    return model.step(ids, cache)

  greedy.greedy(
      counting_step, model.cache, batch_size=3, max_length=LENGTH, eos_id=EOS)
  jax.effects_barrier()
  assert len(calls) == 2


def test_equally_likely_tokens_give_the_lowest_id(history_model):
  model = history_model(batch=2)
  model.table[:] = 0.0
  model.table[..., :EOS + 1] = -1.0
  tokens, scores = search(model)
  np.testing.assert_array_equal(tokens, np.full((2, LENGTH), EOS + 1))
  log_prob = -np.log(2 + 2 * np.exp(-1.0))
  np.testing.assert_allclose(scores, LENGTH * log_prob, rtol=1e-6)


def test_logits_of_half_precision_are_scored_in_float32(history_model):
  model = history_model(batch=3, seed=4)

  def half_step(ids, cache):
    logits, cache = model.step(ids, cache)
    return logits.astype(jnp.bfloat16), cache

  _, scores = greedy.greedy(
      half_step, model.cache, batch_size=3, max_length=LENGTH, eos_id=EOS)
  model.table = np.asarray(
      jnp.asarray(model.table, jnp.bfloat16).astype(jnp.float32))
  assert scores.dtype == jnp.float32
  np.testing.assert_allclose(
      scores, [recomputed(model, row)[1] for row in range(3)], rtol=1e-5)


@pytest.mark.parity
def test_equals_hugging_face(torch_model):
  expected, _ = torch_model.generate(num_beams=1)
  tokens, _ = jax.jit(lambda cache: greedy.greedy(
      torch_model.step, cache, batch_size=8, max_length=12, eos_id=EOS)
  )(torch_model.cache)
  assert np.all(np.any(expected == EOS, axis=1))
  assert len(np.unique(expected, axis=0)) == 8  # the prompts matter
  np.testing.assert_array_equal(tokens, expected)
