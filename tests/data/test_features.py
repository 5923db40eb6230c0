"""Tokenising, cutting, caching and padding, against hand-made cases."""

import json
import os

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.data import features, tasks, vocabularies

BYTES = vocabularies.ByteVocabulary()
LENGTHS = {"inputs": 6, "targets": 3}

ROWS = (
    {"inputs": "abc", "targets": "x", "note": {"id": np.int64(7)}},
    {"inputs": "abcdefgh", "targets": "xyz", "note": None},
    {"inputs": "", "targets": [120, 121], "note": b"raw"},
)


def make_task(rows=ROWS, fingerprint="rows", **settings):
  calls = []

  def examples(split):
    calls.append(split)
    return iter(rows)

  task = tasks.Task(
      "mine", examples, ("train",), fingerprint=fingerprint, **settings)
  return task, calls


def run(task, cache_dir=None, lengths=LENGTHS, vocabulary=BYTES):
  return features.tokenize(
      task, "train", vocabulary, vocabulary, lengths, cache_dir)


def contents(examples):
  return [(examples.ids("inputs", i).tolist(),
           examples.ids("targets", i).tolist(), examples.original(i))
          for i in range(len(examples))]


def test_ids_end_in_one_eos_and_what_is_cut_is_counted():
  examples = run(make_task()[0])
  assert [row[:2] for row in contents(examples)] == [
      ([100, 101, 102, 1], [123, 1]),
      ([100, 101, 102, 103, 104, 1], [123, 124, 1]),
      ([1], [120, 121, 1]),
  ]
  assert examples.truncated == {
      "inputs": features.Truncation(1, 3), "targets": features.Truncation(1, 1)}
  assert examples.lengths("inputs").tolist() == [4, 6, 1]
  assert examples.arrays["inputs"].dtype == np.int32


def test_originals_are_kept():
  examples = run(make_task()[0])
  assert examples.original(0)["note"] == {"id": 7}
  assert examples.original(2) == {
      "inputs": "", "targets": [120, 121], "note": "raw"}
  with pytest.raises(IndexError):
    examples.original(3)


def test_ids_pass_through():
  ids = features.sequence_ids
  assert ids(np.array([5, 6, 1]), BYTES) == [5, 6, 1]
  assert ids([5, 6], BYTES) == [5, 6, 1]
  assert ids([5, 6], BYTES, add_eos=False) == [5, 6]
  assert ids([], BYTES) == [1]
  assert ids(b"a", BYTES) == [100, 1]
  assert features.truncate([5, 6, 7, 8], 3, 1) == [5, 6, 7]
  assert features.truncate([5, 6, 7, 1], 3, 1) == [5, 6, 1]


def test_a_feature_without_eos_stays_without():
  task, _ = make_task(without_eos=frozenset({"targets"}))
  examples = run(task)
  assert examples.ids("targets", 1).tolist() == [123, 124, 125]
  assert examples.ids("inputs", 0)[-1] == 1


def test_cache_is_read_instead_of_the_task(tmp_path):
  task, calls = make_task()
  first = run(task, tmp_path)
  second = run(task, tmp_path)
  assert calls == ["train"]
  assert contents(first) == contents(second)
  assert first.truncated == second.truncated
  assert first.fingerprint == second.fingerprint
  assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("change", [
    {"lengths": {"inputs": 5, "targets": 3}},
    {"lengths": {"inputs": 6, "targets": 2}},
    {"vocabulary": vocabularies.ByteVocabulary(1)},
    {"task": {"fingerprint": "others"}},
    {"task": {"without_eos": frozenset({"inputs"})}},
])
def test_cache_key_covers_all_that_changes_ids(tmp_path, change):
  first = run(make_task()[0], tmp_path)
  task, calls = make_task(**change.pop("task", {}))
  second = run(task, tmp_path, **change)
  assert calls == ["train"]
  assert first.fingerprint != second.fingerprint


def test_a_task_that_does_not_know_its_examples_is_not_cached(tmp_path):
  task, calls = make_task(fingerprint="")
  first = run(task, tmp_path)
  run(task, tmp_path)
  assert calls == ["train", "train"]
  assert not list(tmp_path.iterdir())
  other, _ = make_task(ROWS[:2], fingerprint="")
  assert run(other).fingerprint != first.fingerprint


def test_the_fingerprint_may_depend_on_the_split(tmp_path):
  task, calls = make_task(fingerprint=lambda split: f"of {split}")
  run(task, tmp_path)
  run(task, tmp_path)
  assert calls == ["train"]


def _flip(path):
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize("damage", [
    lambda folder: _flip(folder / "inputs.npy"),
    lambda folder: _flip(folder / "originals.npy"),
    lambda folder: (folder / "targets.npy").unlink(),
    lambda folder: (folder / "index.json").write_text("{"),
    lambda folder: (folder / "index.json").write_text("[]"),
    lambda folder: (folder / "index.json").unlink(),
    lambda folder: os.truncate(folder / "targets_offsets.npy", 40),
])
def test_damaged_cache_is_made_again_with_one_warning(tmp_path, damage):
  task, calls = make_task()
  first = contents(run(task, tmp_path))
  (folder,) = tmp_path.iterdir()
  damage(folder)
  with pytest.warns(UserWarning, match="damaged") as caught:
    assert contents(run(task, tmp_path)) == first
  assert len(caught) == 1
  assert calls == ["train"] * 2
  run(task, tmp_path)
  assert calls == ["train"] * 2


def test_an_array_of_objects_in_the_cache_is_not_loaded(tmp_path):
  task, _ = make_task()
  run(task, tmp_path)
  (folder,) = tmp_path.iterdir()
  bad = folder / "inputs.npy"
  np.save(bad, np.array([{}], object), allow_pickle=True)
  index = json.loads((folder / "index.json").read_text())
  index["sha256"]["inputs"] = features._sha256(bad)
  (folder / "index.json").write_text(json.dumps(index))
  with pytest.warns(UserWarning, match="damaged"):
    run(task, tmp_path)


def test_unwritable_cache(tmp_path):
  blocked = tmp_path / "file"
  blocked.write_text("")
  with pytest.raises(errors.UserError, match="writable folder"):
    run(make_task()[0], blocked / "cache")


@pytest.mark.parametrize("rows, message", [
    ((), "has no examples"),
    (({"inputs": "a"},), "example 1 of mine/train has no 'targets'"),
    (({"inputs": "a", "targets": "b", "x": object()},), "neither text nor"),
])
def test_bad_examples(rows, message):
  with pytest.raises(errors.UserError, match=message):
    run(make_task(rows)[0])


def test_bad_requests():
  task, _ = make_task()
  with pytest.raises(errors.UserError, match="it has train"):
    features.tokenize(task, "test", BYTES, BYTES, LENGTHS)
  with pytest.raises(errors.UserError, match="TASK_FEATURE_LENGTHS"):
    run(task, lengths={"inputs": 4})
  other = vocabularies.ByteVocabulary(5)
  task, _ = make_task(feature_vocabularies={"targets": other})
  with pytest.raises(errors.UserError, match="the targets of the task mine"):
    run(task)


def test_model_features_by_hand():
  # The example in the documentation of seqio's EncDecFeatureConverter,
  # without packing.
  made = features.model_features(
      [[7, 8, 5, 1], [8, 4, 9, 3, 1]], [[3, 9, 1], [4, 1]], 6, 4)
  expected = {
      "encoder_input_tokens": [[7, 8, 5, 1, 0, 0], [8, 4, 9, 3, 1, 0]],
      "decoder_target_tokens": [[3, 9, 1, 0], [4, 1, 0, 0]],
      "decoder_input_tokens": [[0, 3, 9, 1], [0, 4, 1, 0]],
      "decoder_loss_weights": [[1, 1, 1, 0], [1, 1, 0, 0]],
  }
  assert made.keys() == expected.keys()
  for name, value in expected.items():
    assert made[name].dtype == np.int32
    assert made[name].tolist() == value


@pytest.mark.parity
def test_model_features_are_seqios(shared_data):
  seqio = pytest.importorskip("seqio")
  tf = pytest.importorskip("tensorflow")
  path = shared_data / "t5x" / "t5_vocab"
  lines = (shared_data / "sst2" / "dev.tsv").read_text().splitlines()[:40]
  rows = [dict(zip(("inputs", "targets"), line.split("\t"))) for line in lines]
  lengths = {"inputs": 20, "targets": 3}
  vocabulary = vocabularies.SentencePieceVocabulary(path, 100)
  task = tasks.Task("sst2", lambda split: iter(rows), ("train",))
  ours = features.tokenize(task, "train", vocabulary, vocabulary, lengths)
  assert ours.truncated["inputs"].examples > 10

  theirs = seqio.SentencePieceVocabulary(str(path), 100)
  output_features = {name: seqio.Feature(theirs) for name in lengths}
  dataset = tf.data.Dataset.from_tensor_slices(
      {name: [row[name] for row in rows] for name in lengths})
  dataset = seqio.preprocessors.tokenize(dataset, output_features)
  dataset = seqio.preprocessors.append_eos_after_trim(
      dataset, output_features=output_features, sequence_length=lengths)
  dataset = seqio.EncDecFeatureConverter(pack=False)(dataset, lengths)
  converted = list(dataset.as_numpy_iterator())
  made = features.model_features(
      [ours.ids("inputs", i) for i in range(40)],
      [ours.ids("targets", i) for i in range(40)], 20, 3)
  for name, value in made.items():
    expected = np.stack([row[name] for row in converted])
    np.testing.assert_array_equal(value, expected)
    assert value.dtype == expected.dtype
