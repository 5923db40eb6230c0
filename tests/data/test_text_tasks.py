"""Variants of a task, and its index as an id."""

import pytest

from prompt_tuning.data import features, tasks, text_tasks, vocabularies

ROWS = [{"sentence": "good", "label": 1, "idx": 0},
        {"sentence": "bad", "label": 0, "idx": 1}]


@pytest.fixture
def read(monkeypatch):
  """Tokenises a task whose dataset is `ROWS`."""
  def tokenized(name, vocabulary, lengths, **settings):
    task = tasks.get_task(name)
    monkeypatch.setattr(
        type(text_tasks.source_of(task)), "rows",
        lambda self, split: iter(ROWS))
    return features.tokenize(
        task, "train", vocabulary, vocabulary, lengths, **settings)

  return tokenized


def test_the_index_is_an_extra_id_of_t5(read, shared_data):
  vocabulary = vocabularies.SentencePieceVocabulary(
      shared_data / "t5x" / "t5_vocab", 100)
  lengths = {"inputs": 12, "targets": 4}
  plain = read("taskless_glue_sst2_v200", vocabulary, lengths)
  indexed = read("task_index_glue_sst2_v200", vocabulary, lengths)
  for i in range(2):
    # SST-2 is the seventh of GLUE's tasks; T5's highest id is 32099.
    assert indexed.ids("inputs", i).tolist() == [
        32099 - 6, *plain.ids("inputs", i).tolist()]
    assert indexed.ids("targets", i).tolist() == (
        plain.ids("targets", i).tolist())
  assert indexed.original(0)["inputs_pretokenized"] == "sentence: good"


def test_an_index_survives_the_cut(read):
  vocabulary = vocabularies.ByteVocabulary()
  found = read("task_index_glue_cola_v200", vocabulary,
               {"inputs": 6, "targets": 40})
  ids = found.ids("inputs", 0).tolist()
  assert ids == [vocabulary.vocab_size - 1,
                 *vocabulary.encode("sentence: good")[:4], 1]


def test_ids_of_two_variants_are_cached_apart(read, tmp_path):
  vocabulary = vocabularies.ByteVocabulary()
  lengths = {"inputs": 40, "targets": 20}
  for name in ("taskless_glue_sst2_v200", "task_index_glue_sst2_v200",
               "taskless_glue_sst2_v002"):
    read(name, vocabulary, lengths, cache_dir=tmp_path)
  assert len(list(tmp_path.iterdir())) == 3


def test_indexes_follow_the_order_of_names():
  assert text_tasks.indexes(("b", "a"), {"c": "b"}) == {"a": 0, "b": 1, "c": 1}
