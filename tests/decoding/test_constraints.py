"""Bans and forced tokens, by hand and against a search through lists."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.decoding import beam, constraints
from prompt_tuning.errors import UserError

NONE = constraints.NO_TOKEN


def banned_by_list(text, size, vocab):
  """Every token that makes an n-gram of the text a second time."""
  text = [token for token in text if token != NONE]
  seen = {tuple(text[i:i + size]) for i in range(len(text) - size + 1)}
  last = text[len(text) - size + 1:] if size > 1 else []
  return [len(last) == size - 1 and (*last, token) in seen
          for token in range(vocab)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_repeated_is_a_search_through_lists(size):
  draw = np.random.default_rng(size)
  history = draw.integers(0, 4, (40, 9))
  for row, missing in zip(history, itertools.cycle(range(4))):
    row[:missing] = NONE
  for end in (0, 1, 5, 9):
    found = constraints.repeated(jnp.asarray(history), jnp.int32(end), size, 4)
    expected = [banned_by_list(row[:end], size, 4) for row in history.tolist()]
    np.testing.assert_array_equal(found, expected)


def test_completed_words():
  history = jnp.array([[5, 3, 4, 0], [NONE, 3, 9, 0]])
  words = [[7], [4, 6], [3, 4, 8], [9, 3, 9, 2], [1, 5, 3, 4, 0]]
  found = constraints.completed(history, jnp.int32(3), words, 10)
  assert [np.flatnonzero(row).tolist() for row in found] == [[6, 7, 8], [7]]


def test_context_adjoins_what_is_decoded():
  tokens = jnp.array([[7, 8, 0, 0], [0, 0, 5, 6], [1, 2, 3, 4]])
  visible = jnp.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]], bool)
  np.testing.assert_array_equal(
      constraints.context_of(tokens, visible),
      [[NONE, NONE, 7, 8], [NONE, NONE, 5, 6], [1, 2, 3, 4]])


def search(num_beams=2, vocab=5, **options):
  return beam.beam_search(
      lambda ids, cache: (jnp.zeros((len(ids), vocab)), cache), {},
      batch_size=1, max_length=3, eos_id=1, num_beams=num_beams,
      rules=options.pop("rules", "hugging_face"), **options)


@pytest.mark.parametrize("options, message", [
    ({"num_beams": 6}, "num_beams is 6 and the vocabulary has 5 tokens"),
    ({"min_new_tokens": -1}, "min_new_tokens is -1: give a whole number"),
    ({"bad_words": [[]]}, r"bad_words has \[\]: give each word as a list"),
    ({"bad_words": [[198]]}, "bad_words has the token 198, and the model's"),
    ({"forced_bos_id": 5}, "forced_bos_id has the token 5"),
    ({"early_stopping": "often"}, "early_stopping is 'often': give False"),
    ({"early_stopping": True, "rules": "t5x"}, "which T5X's rules have not")])
def test_what_cannot_be_is_refused_in_a_sentence(options, message):
  with pytest.raises(UserError, match=message):
    search(**options)
