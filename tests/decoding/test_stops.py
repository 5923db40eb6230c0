"""Stop strings in a compiled loop.

Oracle: searching the decoded text with Python's own `in`.
"""

import jax
import numpy as np
import pytest

from prompt_tuning.data import vocabularies
from prompt_tuning.decoding import greedy, sampling, stops
from prompt_tuning.errors import UserError

PIECES = ("", "a", "b", "ab", "ba", "bab", "c", "\n", "\nde", "f", "x[/A", "]y")
STOPS = ["abab", "\ndef", "[/A]", "bb"]


def follow(table, tokens):
  state = 0
  for count, token in enumerate(tokens, start=1):
    state = table[state, token]
    if state == len(table) - 1:
      return count
  return None


def test_stops_are_seen_wherever_tokens_begin():
  table = stops.stop_table(STOPS, PIECES)
  draw = np.random.default_rng(0)
  found = 0
  for _ in range(300):
    tokens = draw.integers(len(PIECES), size=12)
    texts = ["".join(PIECES[t] for t in tokens[:n]) for n in range(13)]
    first = next((n for n, text in enumerate(texts)
                  if any(stop in text for stop in STOPS)), None)
    assert follow(table, tokens) == first
    found += first is not None
  assert 100 < found < 300


@pytest.mark.parametrize("search", ["greedy", "sample"])
def test_rows_end_with_their_stop_and_the_loop_with_the_last(
    history_model, search):
  model = history_model(batch=6, vocab=4, length=6)
  table = stops.stop_table(["dc"], ["a", "b", "c", "d"])
  options = {"batch_size": 6, "max_length": 6, "eos_id": 99}

  def run(**more):
    if search == "greedy":
      return greedy.greedy(model.step, model.cache, **options, **more)[0]
    return sampling.sample(
        model.step, model.cache, jax.random.key(1), num_samples=2, **options,
        **more)[0].reshape(12, 6)

  free, stopped = np.asarray(run()), np.asarray(run(stop_table=table))
  ended = 0
  for row, other in zip(free, stopped):
    text = "".join("abcd"[t] for t in row)
    end = text.find("dc") + 2 if "dc" in text else 6
    np.testing.assert_array_equal(other, [*row[:end], *[0] * (6 - end)])
    ended += end < 6
  assert ended


def test_texts_of_tokens_add_up():
  vocabulary = vocabularies.ByteVocabulary()
  texts = stops.token_texts(vocabulary)
  sentence = "def f(x): return [/ANSWER]"
  assert "".join(texts[i] for i in vocabulary.encode(sentence)) == sentence


def test_texts_of_smollm2s_tokens_add_up(smollm2):
  from prompt_tuning.data import tokenizers

  vocabulary = tokenizers.from_path(str(smollm2))
  texts = stops.token_texts(vocabulary)
  sentence = "\nassert f([1, 'a  b']) == {}\n[/ANSWER]\n  return"
  assert "".join(texts[i] for i in vocabulary.encode(sentence)) == sentence
  assert texts[vocabulary.eos_id] == ""


def test_a_text_is_cut_at_the_first_stop():
  assert stops.cut("ab\ndef c [/A]", STOPS) == "ab"
  assert stops.cut("ab", STOPS) == "ab"
  with pytest.raises(UserError, match="empty"):
    stops.stop_table(["", "a"], PIECES)


def test_a_rows_own_key_is_all_that_its_draws_depend_on(history_model):
  """The same keys in another order, and as the batch's key derives them."""
  model = history_model(batch=4)
  key = jax.random.PRNGKey(3)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(4))

  def run(rng, rows=slice(None)):
    cache = {**model.cache, "row": model.cache["row"][rows],
             "layer": {**model.cache["layer"],
                       "history": model.cache["layer"]["history"][rows]}}
    return np.asarray(sampling.sample(
        model.step, cache, rng, num_samples=3, max_length=4, eos_id=1,
        batch_size=len(cache["row"]))[0])

  whole = run(key)
  np.testing.assert_array_equal(run(keys), whole)
  rows = np.array([2, 0])
  np.testing.assert_array_equal(run(keys[rows], rows),
                                whole[rows])
