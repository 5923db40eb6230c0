"""Beam search and the cache's rows.

Oracles: all sequences of a tiny model enumerated (closed form); a search over
Python lists that follows T5X's rules; Hugging Face `generate`.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.decoding import beam, greedy
from prompt_tuning.decoding import cache as caches
from prompt_tuning.errors import UserError

EOS = 1
VOCAB = 4
LENGTH = 4


def search(model, **options):
  """Jitted `beam_search` of a `HistoryModel`, as numpy arrays."""
  options = {"max_length": LENGTH, "eos_id": EOS} | options
  return jax.tree.map(np.asarray, jax.jit(
      lambda cache: beam.beam_search(
          model.step, cache, batch_size=len(model.table), **options)
  )(model.cache))


def padded(tokens):
  return list(tokens) + [0] * (LENGTH - len(tokens))


def list_search(model, row, num_beams, alpha, penalty):
  """Beam search over lists, never stopping early; best first."""
  live, finished = [(0.0, ())], []
  for _ in range(LENGTH):
    candidates = [
        (score + log_prob, (*tokens, token))
        for score, tokens in live
        for token, log_prob in enumerate(model.log_probs_after(row, tokens))]
    candidates = sorted(candidates, reverse=True)[:2 * num_beams]
    finished += [
        (score / penalty(len(tokens), alpha), tokens)
        for score, tokens in candidates if tokens[-1] == EOS]
    finished = sorted(finished, reverse=True)[:num_beams]
    live = [c for c in candidates if c[1][-1] != EOS][:num_beams]
  return finished or live


@pytest.mark.parametrize("alpha, penalty", [
    (0.0, beam.t5x_brevity),
    (0.6, beam.t5x_brevity),
    (2.0, beam.hugging_face_length),
])
def test_exhaustive_beams_rank_all_sequences(history_model, alpha, penalty):
  # 64 beams hold every prefix and every ending: 1 + 3 + 9 + 27 of the latter.
  model = history_model(batch=3, seed=1)
  tokens, scores = search(model, num_beams=64, alpha=alpha, penalty=penalty)
  others = [token for token in range(VOCAB) if token != EOS]
  for row in range(3):
    ranked = sorted((
        (model.log_prob(row, (*start, EOS)) / penalty(n + 1, alpha),
         padded((*start, EOS)))
        for n in range(LENGTH)
        for start in itertools.product(others, repeat=n)), reverse=True)
    assert len(ranked) == 40
    assert tokens[row, :40].tolist() == [found for _, found in ranked]
    np.testing.assert_allclose(
        scores[row, :40], [score for score, _ in ranked], rtol=1e-5)
    assert np.all(scores[row, 40:] == -np.inf)
    assert not np.any(tokens[row, 40:])


@pytest.mark.parametrize("num_beams, alpha, penalty", [
    (1, 0.6, beam.t5x_brevity),
    (2, 0.0, beam.t5x_brevity),
    (4, 0.6, beam.t5x_brevity),
    (4, 1.0, beam.hugging_face_length),
    (3, -1.0, beam.hugging_face_length),
])
def test_equals_search_over_lists(history_model, num_beams, alpha, penalty):
  model = history_model(batch=8, seed=2)
  model.table[:3, ..., EOS] -= 3  # some examples end late, or not at all
  tokens, scores = search(
      model, num_beams=num_beams, alpha=alpha, penalty=penalty)
  for row in range(8):
    expected = list_search(model, row, num_beams, alpha, penalty)
    found = len(expected)
    assert tokens[row, :found].tolist() == [padded(t) for _, t in expected]
    np.testing.assert_allclose(
        scores[row, :found], [score for score, _ in expected], rtol=1e-5)
    assert np.all(scores[row, found:] == -np.inf)


def test_nothing_finished_gives_live_hypotheses_unpenalised(history_model):
  model = history_model(batch=2, seed=3)
  model.table[0, ..., EOS] = -np.inf
  tokens, scores = search(model, num_beams=3, alpha=0.6)
  assert EOS not in tokens[0] and EOS in tokens[1]
  expected = [model.log_prob(0, found) for found in tokens[0].tolist()]
  np.testing.assert_allclose(scores[0], expected, rtol=1e-5)
  assert np.all(np.diff(scores[0]) <= 0)


@pytest.mark.parametrize("batch", [1, 3])
def test_an_example_does_not_depend_on_its_batch(history_model, batch):
  model = history_model(batch=8, seed=4)
  model.table[4:, ..., EOS] -= 5  # long searches beside short ones
  tokens, scores = search(model)
  model.table = model.table[:batch]
  part_tokens, part_scores = search(model)
  np.testing.assert_array_equal(part_tokens, tokens[:batch])
  np.testing.assert_array_equal(part_scores, scores[:batch])


def test_one_beam_is_greedy_where_endings_are_certain(history_model):
  # Where EOS is either certain or impossible there is no second-best ending
  # to keep, which is all that one beam has over greedy search.
  model = history_model(batch=8, seed=5)
  ends = np.random.default_rng(0).random(model.table.shape[:3]) < 0.3
  model.table[..., EOS] = np.where(ends, 1e4, -np.inf)
  expected_tokens, expected_scores = greedy.greedy(
      model.step, model.cache, batch_size=8, max_length=LENGTH, eos_id=EOS)
  tokens, scores = search(model, num_beams=1, alpha=0.0)
  assert 0 < np.sum(np.any(tokens == EOS, axis=-1)) < 8
  np.testing.assert_array_equal(tokens[:, 0], expected_tokens)
  np.testing.assert_allclose(scores[:, 0], expected_scores, atol=1e-6)


def test_stops_when_no_live_hypothesis_can_improve(history_model):
  model = history_model(batch=3, seed=6)
  model.table[..., EOS] = 20.0  # every hypothesis wants to end at once
  calls = []

  def counting_step(ids, cache):
    jax.debug.callback(lambda: calls.append(1))
    return model.step(ids, cache)

  beam.beam_search(
      counting_step, model.cache, batch_size=3, max_length=LENGTH, eos_id=EOS,
      num_beams=2)
  jax.effects_barrier()
  assert len(calls) == 2  # the first step has one ending, the second has two


def test_goes_on_for_the_sake_of_a_longer_hypothesis(history_model):
  model = history_model(batch=1)
  model.table[:, 0] = np.log([0.15, 0.5, 0.2, 0.15])  # EOS is likeliest
  model.table[:, 1:] = [-99, -99, 0, -99]  # then 2, 2 and EOS are certain
  model.table[:, 3] = [-99, 0, -99, -99]
  tokens, scores = search(
      model, num_beams=1, alpha=1.0, penalty=beam.hugging_face_length)
  # log(0.2) / 4 beats log(0.5) / 1, but log(0.2) / 2 would not have.
  assert tokens.tolist() == [[[2, 2, 2, EOS]]]
  np.testing.assert_allclose(scores, np.log(0.2) / 4, rtol=1e-6)


def test_start_id_is_fed_first_and_not_returned(history_model):
  model = history_model(batch=1, seed=7)
  expected_tokens, expected_scores = search(model)
  # After feeding 2, make the model what it was after feeding 0.
  first = np.arange(model.table.shape[2]) % VOCAB
  model.table[:, :, first == 2] = model.table[:, :, first == 0]
  model.table[:, :, first == 0] = 0.0
  tokens, scores = search(model, start_id=2)
  np.testing.assert_array_equal(tokens, expected_tokens)
  np.testing.assert_array_equal(scores, expected_scores)


def test_scanned_cache_with_rows_on_axis_one(history_model):
  model = history_model(batch=3, seed=8)

  def stacked(cache):
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), cache)

  def scanned_step(ids, cache):
    logits, cache = model.step(ids, jax.tree.map(lambda leaf: leaf[1], cache))
    return logits, stacked(cache)

  tokens, scores = jax.jit(lambda cache: beam.beam_search(
      scanned_step, cache, batch_size=3, max_length=LENGTH, eos_id=EOS,
      batch_axis=1))(stacked(model.cache))
  expected_tokens, expected_scores = search(model)
  np.testing.assert_array_equal(tokens, expected_tokens)
  np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("axis", [0, 1])
def test_cache_expand_and_gather(axis):
  leaf = np.arange(6 * 2).reshape((6, 2) if axis == 0 else (2, 6))
  shared = {"cache_index": jnp.int32(7), "cached_bias": jnp.ones((1, 5)),
            "position_embedder_index": jnp.int32(-1)}
  cache = {"decoder": {"cached_key": jnp.asarray(leaf), **shared}}

  twice = caches.expand(cache, 2, axis)["decoder"]
  np.testing.assert_array_equal(twice["cached_key"], np.repeat(leaf, 2, axis))

  # B = 2 examples of k = 3 beams: the second example's rows are 3, 4 and 5.
  picked = caches.gather(cache, jnp.array([[2, 0], [1, 1]]), axis)["decoder"]
  np.testing.assert_array_equal(
      picked["cached_key"], np.take(leaf, [2, 0, 4, 4], axis))
  for name, value in shared.items():
    np.testing.assert_array_equal(twice[name], value)
    np.testing.assert_array_equal(picked[name], value)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather_leaves_what_all_rows_have_where_it_is(axis):
  """Oracle: a gather of everything."""
  draw = np.random.default_rng(0)
  shape = [2, 3, 3, 5, 2]  # [..., S, D]
  shape[axis] = 2  # B
  leaf = draw.normal(size=shape).astype(np.float32)
  leaf = np.repeat(leaf, 3, axis=axis)  # k = 3 rows an example, all alike
  leaf[..., 2:, :] = draw.normal(size=leaf[..., 2:, :].shape)
  cache = {name: jnp.asarray(leaf) for name in ("cached_key", "cached_value")}
  rows = jnp.array([[2, 0, 0], [1, 1, 2]])
  found = caches.gather(cache, rows, axis, alike=2)
  expected = np.take(leaf, [2, 0, 0, 4, 4, 5], axis)
  for value in found.values():
    np.testing.assert_array_equal(value, expected)


def test_gather_of_a_sharded_batch_moves_nothing_between_devices():
  mesh = jax.make_mesh((8,), ("data",))
  rows = jax.NamedSharding(mesh, jax.P("data"))
  cache = {"cached_key": jax.device_put(jnp.arange(64.0)[:, None], rows)}
  indices = jax.device_put(
      jnp.asarray(np.random.default_rng(0).integers(4, size=(16, 4))), rows)
  gather = jax.jit(caches.gather)
  program = gather.lower(cache, indices).compile().as_text()
  for exchange in ("all-gather", "all-reduce", "all-to-all", "permute"):
    assert exchange not in program
  np.testing.assert_array_equal(
      gather(cache, indices)["cached_key"].ravel(),
      (np.arange(16)[:, None] * 4 + np.asarray(indices)).ravel())


def test_no_beams_is_refused(history_model):
  with pytest.raises(UserError, match="beam_search.num_beams is 0"):
    search(history_model(batch=1), num_beams=0)


def compared(torch_model, length_penalty):
  """(tokens [32, 12], scores [32]) of Hugging Face, and the same of ours."""
  # "never" bounds the reachable score by the maximal length, as we do.
  expected = torch_model.generate(
      num_beams=4, num_return_sequences=4, length_penalty=length_penalty,
      early_stopping="never")
  # A hypothesis that is cut off counts as finished there, and here it does
  # not: the comparison means something only if all have ended.
  assert np.all(np.any(expected[0] == EOS, axis=1))
  tokens, scores = jax.jit(lambda cache: beam.beam_search(
      torch_model.step, cache, batch_size=8, max_length=12, eos_id=EOS,
      num_beams=4, alpha=length_penalty, penalty=beam.hugging_face_length)
  )(torch_model.cache)
  return expected, (tokens.reshape(32, 12), scores.reshape(32))


@pytest.mark.parity
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_equals_hugging_face_or_scores_higher(torch_model, length_penalty):
  (expected_tokens, expected_scores), (tokens, scores) = compared(
      torch_model, length_penalty)
  # Endings beyond the K likeliest continuations count here and not there.
  assert np.all(scores >= expected_scores - 1e-5)
  same = np.isclose(scores, expected_scores, rtol=1e-5)
  assert np.sum(same[::4]) >= 7  # the best of 8 prompts
  np.testing.assert_array_equal(tokens[same], expected_tokens[same])


@pytest.mark.parity
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_equals_hugging_face_without_its_rule_on_endings(
    torch_model, length_penalty, monkeypatch):
  update = getattr(torch_model.model, "_update_finished_beams", None)
  if update is None:
    pytest.skip("this version of transformers has another beam search")

  def update_with_all_endings(*, top_num_beam_mask, **arguments):
    return update(top_num_beam_mask=top_num_beam_mask | True, **arguments)

  monkeypatch.setattr(
      torch_model.model, "_update_finished_beams", update_with_all_endings)
  (expected_tokens, expected_scores), (tokens, scores) = compared(
      torch_model, length_penalty)
  np.testing.assert_array_equal(tokens, expected_tokens)
  np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_hugging_face_rules_give_its_search(torch_model, length_penalty):
  expected_tokens, expected_scores = torch_model.generate(
      num_beams=4, num_return_sequences=4, length_penalty=length_penalty,
      early_stopping=False)
  tokens, scores = jax.jit(lambda cache: beam.beam_search(
      torch_model.step, cache, batch_size=8, max_length=12, eos_id=EOS,
      num_beams=4, alpha=length_penalty, penalty=beam.hugging_face_length,
      rules="hugging_face"))(torch_model.cache)
  np.testing.assert_array_equal(tokens.reshape(32, 12), expected_tokens)
  np.testing.assert_allclose(scores.reshape(32), expected_scores, rtol=1e-5)
