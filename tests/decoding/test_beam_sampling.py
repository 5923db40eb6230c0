"""Beam sampling: what is drawn, and what becomes of it.

Oracles: `transformers.generate` that is given the same noise; the closed form
of every outcome's probability; beam search, of which it is the limit.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.decoding import beam, beam_sampling, sampling
from prompt_tuning.errors import UserError

EOS = 1


def draw(model, seed=0, **options):
  """Jitted `beam_sample` of a model with `step` and `cache`, as numpy."""
  options = {"max_length": 4, "eos_id": EOS, "num_beams": 2} | options
  return jax.tree.map(np.asarray, jax.jit(
      lambda cache, rng: beam_sampling.beam_sample(
          model.step, cache, rng, batch_size=len(cache["row"]), **options)
  )(model.cache, jax.random.key(seed)))


@pytest.mark.parity
@pytest.mark.parametrize("options", [
    {"temperature": 0.3},
    {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "num_beams": 4},
    {"top_k": 1, "top_p": 0.01, "num_beams": 3, "early_stopping": True,
     "length_penalty": 0.5}])
def test_with_the_same_noise_it_is_that_of_generate(
    torch_model, monkeypatch, options):
  """torch's draws are replaced by ours; all else is transformers'."""
  import torch

  key, vocab, rows = jax.random.key(3), 12, 8
  beams = options.get("num_beams", 2)
  top_k = options.get("top_k", 0)
  count = min(vocab, max(top_k, 2)) if top_k else vocab
  positions = itertools.count()

  def multinomial(probs, num_samples):
    position = next(positions)
    noise = np.stack([jax.random.gumbel(jax.random.fold_in(
        jax.random.fold_in(key, row), position), beams * count)
        for row in range(rows)]).reshape(rows, beams, count)
    probs = probs.reshape(rows, beams, vocab)
    # Ours has the noise of each hypothesis in the order of its tokens.
    order = torch.argsort(probs, dim=-1, descending=True, stable=True)
    all_noise = torch.zeros_like(probs).scatter(
        2, order[:, :, :count], torch.from_numpy(noise))
    found = (torch.log(probs) + all_noise).reshape(rows, -1)
    return torch.topk(found, num_samples).indices

  monkeypatch.setattr(torch, "multinomial", multinomial)
  settings = {"num_beams": 2, "top_k": 0} | options
  expected, expected_scores = torch_model.generate(
      do_sample=True, **settings)
  ours = {("alpha" if name == "length_penalty" else name): value
          for name, value in options.items()}
  tokens, scores = jax.device_get(jax.jit(
      lambda cache: beam_sampling.beam_sample(
          torch_model.step, cache, key, batch_size=rows, max_length=12,
          eos_id=EOS, **{"num_beams": 2} | ours))(torch_model.cache))
  np.testing.assert_array_equal(tokens[:, 0], expected)
  np.testing.assert_allclose(scores[:, 0], expected_scores, rtol=1e-4)
  assert next(positions) > 1 and np.any(expected == EOS)


def outcomes(model, num_beams, temperature, alpha=1.0):
  """Probabilities of the best text of two tokens, by the rules written out."""
  found = {}

  def log_probs(text):
    return model.log_probs_after(0, text) / temperature

  def visit(live, finished, probability, position):
    if position == 2:
      best = max(finished, key=lambda one: one[0])[1]
      found[best] = found.get(best, 0.0) + probability
      return
    options = [(score + log_probs(text)[token], (*text, token))
               for score, text in live for token in range(4)]
    weights = np.exp([score for score, _ in options])
    for chosen in itertools.permutations(
        range(len(options)), min(2 * num_beams, len(options))):
      left, chance = weights.sum(), probability
      for one in chosen:
        chance *= weights[one] / left
        left -= weights[one]
      ranked = sorted((options[i] for i in chosen), reverse=True)
      ends = [one[1][-1] == EOS or position == 1 for one in ranked]
      new = [(score / (position + 1) ** alpha, text) for (score, text), end
             in zip(ranked[:num_beams], ends) if end]
      visit([one for one, end in zip(ranked, ends) if not end][:num_beams],
            finished + new, chance, position + 1)

  visit([(0.0, ())], [], 1.0, 0)
  return found


def test_texts_are_drawn_as_often_as_the_rules_say(history_model):
  draws = 20_000
  model = history_model(batch=1, seed=4, length=2, scale=1.5)
  table = np.repeat(model.table, draws, axis=0)
  expected = outcomes(model, 2, 1.3)
  assert abs(sum(expected.values()) - 1) < 1e-9 and len(expected) > 3
  model.table = table
  tokens, _ = draw(model, max_length=2, temperature=1.3)
  for text in itertools.product(range(4), repeat=2):
    text = text if text[0] != EOS else (EOS,)
    probability = expected.get(text, 0.0)
    padded = np.array([*text, 0])[:2]
    frequency = np.mean(np.all(tokens[:, 0] == padded, axis=-1))
    # 4 standard deviations; nothing at all where the probability is 0.
    assert abs(frequency - probability) <= 4 * np.sqrt(
        probability * (1 - probability) / draws)


def test_near_temperature_zero_it_is_beam_search(history_model):
  model = history_model(batch=6, seed=1)
  temperature = 1e-3
  tokens, scores = draw(model, temperature=temperature, num_beams=3)
  expected, expected_scores = jax.jit(lambda cache: beam.beam_search(
      model.step, cache, batch_size=6, max_length=4, eos_id=EOS, num_beams=3,
      alpha=1.0, rules="hugging_face",
      penalty=beam.hugging_face_length))(model.cache)
  np.testing.assert_array_equal(tokens, expected)
  np.testing.assert_allclose(
      scores * temperature, expected_scores, rtol=1e-4)
  other, _ = draw(model, temperature=1.0, num_beams=3)
  assert np.any(other != expected)


def test_what_is_kept_is_what_sampling_keeps_but_two_at_least():
  logits = jax.random.normal(jax.random.key(0), (32, 50)) * 3
  log_probs = jax.nn.log_softmax(logits)
  expected = sampling.process(log_probs, 0.8, 20, 0.9)
  scores, tokens = beam_sampling.candidates(log_probs, 0.8, 20, 0.9)
  found = jnp.full_like(expected, -jnp.inf).at[
      jnp.arange(32)[:, None], tokens].set(scores)
  enough = np.isfinite(expected).sum(axis=1) > 1
  np.testing.assert_allclose(found[enough], expected[enough], rtol=1e-6)
  assert 0 < enough.sum()
  few, _ = beam_sampling.candidates(log_probs, 1.0, 1, 0.01)
  assert few.shape == (32, 2) and np.isfinite(few).all()


def test_a_row_draws_the_same_in_any_batch(history_model):
  model = history_model(batch=4, seed=2)
  keys = jax.random.split(jax.random.key(0), 4)

  def run(rows):
    part = history_model(batch=len(rows))
    part.table = model.table[rows]
    return jax.jit(lambda cache, keys: beam_sampling.beam_sample(
        part.step, cache, keys, batch_size=len(rows), max_length=4,
        eos_id=EOS, num_beams=2)[0])(part.cache, keys[np.array(rows)])

  np.testing.assert_array_equal(run([0, 1, 2, 3])[2:], run([2, 3]))


@pytest.mark.parametrize("options, message", [
    ({"temperature": 0.0}, "above 0"), ({"num_beams": 1}, "nucleus_sampling"),
    ({"top_p": 0.0}, "beam_sample.top_p"), ({"top_q": 1}, "'top_q'")])
def test_what_cannot_be_is_one_sentence(history_model, options, message):
  with pytest.raises(UserError, match=message):
    draw(history_model(batch=1), **options)
