"""Noise on documents: what may and what may not change."""

import itertools

import numpy as np

from prompt_tuning.data import c4, features, tasks, vocabularies

VOCABULARY = vocabularies.ByteVocabulary()
BOTH = {"inputs": VOCABULARY, "targets": VOCABULARY}
LENGTHS = {"inputs": 65, "targets": 65}
IDS = {"inputs": [], "targets": list(range(3, 203))}  # 200 ids


def subsequence(short, long):
  rest = iter(long)
  return all(one in rest for one in short)


def test_deletion_drops_ids_and_no_more():
  found = list(c4.deletion(IDS, BOTH, LENGTHS))
  assert [len(one["targets"]) for one in found] == [64, 64, 64, 8]
  assert sum((one["targets"] for one in found), []) == IDS["targets"]
  assert all(subsequence(one["inputs"], one["targets"]) for one in found)
  dropped = 200 - sum(len(one["inputs"]) for one in found)
  assert 0.05 < dropped / 200 < 0.3


def test_infilling_hides_runs_behind_different_sentinels():
  found = list(c4.infilling(IDS, BOTH, LENGTHS))
  first = VOCABULARY.vocab_size - 1
  for one in found:
    sentinels = [i for i in one["inputs"] if i > 202]
    assert sentinels == list(range(first, first - len(sentinels), -1))
    kept = [i for i in one["inputs"] if i <= 202]
    assert subsequence(kept, one["targets"])
    # 15 % of 64 ids are hidden, in runs of 3 on average.
    if len(one["targets"]) == 64:
      assert (len(kept), len(sentinels)) == (54, 3)


def test_chance_draws_each_word_and_all_lengths():
  lengths, words = [], []
  for start in range(400):
    ids = {"inputs": [], "targets": list(range(3 + start, 43 + start))}
    (one,) = c4.chance(ids, BOTH, LENGTHS, ("positive", "negative"))
    assert one["inputs"] == ids["targets"][:len(one["inputs"])]
    lengths.append(len(one["inputs"]))
    words.append(VOCABULARY.decode(one["targets"]))
  assert 160 < words.count("positive") < 240
  assert set(words) == {"positive", "negative"}
  assert (min(lengths), max(lengths)) == (1, 39)


def test_the_same_example_in_every_run():
  assert list(c4.infilling(IDS, BOTH, LENGTHS)) == list(
      c4.infilling(IDS, BOTH, LENGTHS))


def test_long_documents_give_one_chunk():
  ids = np.arange(200_000, dtype=np.int32)
  found = list(itertools.chain.from_iterable(
      piece for piece, _ in c4.pieces(ids, 1000)))
  assert found[0] % 65536 == 0
  assert 0 < len(found) <= 65536
  assert found == list(range(found[0], found[0] + len(found)))


def test_tokenised_for_a_model(monkeypatch):
  text = "a document of some forty-odd characters."
  task = tasks.get_task("c4_v220_bart_token_deletion")
  monkeypatch.setattr(
      type(task.examples.args[0]), "rows",
      lambda self, split: iter([{"text": text}]))
  examples = features.tokenize(
      task, "train", VOCABULARY, VOCABULARY, LENGTHS)
  assert len(examples) == 1
  assert examples.ids("targets", 0).tolist() == [*VOCABULARY.encode(text), 1]
  assert examples.ids("inputs", 0)[-1] == 1
  assert examples.original(0)["targets_pretokenized"] == text
