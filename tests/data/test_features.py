"""Tokenising, cutting, caching and padding, against hand-made cases."""

import json
import os

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.data import features, tasks, token_ids, vocabularies

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
      "inputs": token_ids.Truncation(1, 3),
      "targets": token_ids.Truncation(1, 1)}
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
  index["sha256"]["inputs"] = token_ids.sha256(bad)
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


DECODER = features.DecoderOnly()


class Begun(vocabularies.ByteVocabulary):
  """Bytes behind a beginning-of-sequence, 2, as Llama's tokenizer has it."""

  def encode_inputs(self, text):
    return [2, *self.encode(text)]


def run_decoder(task, vocabulary=BYTES, cache_dir=None, lengths=LENGTHS):
  return features.tokenize(
      task, "train", vocabulary, vocabulary, lengths, cache_dir, DECODER)


def test_inputs_of_a_decoder_do_not_end_and_lose_their_start():
  examples = run_decoder(make_task(ROWS[:2])[0])
  assert [row[:2] for row in contents(examples)] == [
      ([100, 101, 102], [123, 1]),
      ([102, 103, 104, 105, 106, 107], [123, 124, 1]),
  ]
  assert examples.truncated == {
      "inputs": token_ids.Truncation(1, 2),
      "targets": token_ids.Truncation(1, 1)}


def test_the_beginning_of_sequence_stays_in_front():
  examples = run_decoder(make_task()[0], Begun())
  assert [row[0] for row in contents(examples)] == [
      [2, 100, 101, 102], [2, 103, 104, 105, 106, 107], [2]]
  # No room for more than it: the text goes on from its end all the same.
  assert DECODER.cut_inputs([2, 100, 101], 1, Begun()) == [101]


@pytest.mark.parity
def test_cut_as_tokenizers_cut_on_the_left():
  tokenizers = pytest.importorskip("tokenizers")
  words = {word: i for i, word in enumerate("<s> a b c d e f".split())}
  theirs = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "a"))
  theirs.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  theirs.post_processor = tokenizers.processors.TemplateProcessing(
      single="<s> $A", special_tokens=[("<s>", 0)])

  class Ours(vocabularies.Vocabulary):
    eos_id = 1

    def encode_inputs(self, text):
      return theirs.encode(text).ids

  text = "a b c d e f"
  whole = theirs.encode(text).ids
  for length in range(2, 9):
    ours = DECODER.cut_inputs(whole, length, Ours())
    theirs.enable_truncation(length, direction="left")
    assert list(ours) == theirs.encode(text).ids
    theirs.no_truncation()


def test_ids_for_an_encoder_end_in_what_a_decoder_leaves_out():
  assert DECODER.input_ids([5, 6, 1], BYTES) == [5, 6]
  assert DECODER.input_ids([5, 1, 6], BYTES) == [5, 1, 6]
  assert DECODER.input_ids([5, 6, 1], BYTES, add_eos=False) == [5, 6, 1]
  assert DECODER.input_ids(b"a", Begun()) == [2, 100]


def test_a_decoder_needs_something_to_go_on_from():
  with pytest.raises(errors.UserError, match="example 3 of mine/train has em"):
    run_decoder(make_task()[0])


def test_kinds_of_models_have_caches_of_their_own(tmp_path):
  task, calls = make_task(ROWS[:2])
  first, second = run(task, tmp_path), run_decoder(task, cache_dir=tmp_path)
  assert calls == ["train"] * 2
  assert first.fingerprint != second.fingerprint
  assert contents(run_decoder(task, cache_dir=tmp_path)) == contents(second)
  assert calls == ["train"] * 2


def test_decoder_only_features_by_hand():
  # Id 0 is a token here: nothing may take it for padding.
  made = DECODER.padded([[7, 0, 5], [8]], [[3, 1], [0, 9, 4, 1]], 4, 4)
  expected = {
      "decoder_input_tokens": [[7, 0, 5, 3, 0, 0, 0, 0],
                               [8, 0, 9, 4, 0, 0, 0, 0]],
      "decoder_target_tokens": [[3, 1, 0, 0], [0, 9, 4, 1]],
      "decoder_loss_weights": [[1, 1, 0, 0], [1, 1, 1, 1]],
      "decoder_target_positions": [[2, 3, 4, 5], [0, 1, 2, 3]],
  }
  assert tuple(made) == DECODER.names
  for name, value in expected.items():
    assert made[name].dtype == np.int32
    assert made[name].tolist() == value


def test_targets_are_predicted_from_all_before_them():
  """The features put together again are the texts."""
  draw = np.random.default_rng(0)
  inputs = [draw.integers(0, 9, draw.integers(1, 8)) for _ in range(30)]
  targets = [draw.integers(0, 9, draw.integers(1, 5)) for _ in range(30)]
  made = DECODER.padded(inputs, targets, 7, 4)
  for i, (before, after) in enumerate(zip(inputs, targets)):
    count = made["decoder_loss_weights"][i].sum()
    assert count == len(after)
    for j, place in enumerate(made["decoder_target_positions"][i, :count]):
      context = made["decoder_input_tokens"][i, :place + 1]
      assert context.tolist() == [*before, *after[:j]]
      assert made["decoder_target_tokens"][i, j] == after[j]


def test_names_are_the_features():
  both = features.EncoderDecoder()
  assert tuple(sorted(both.padded([[5, 1]], [[1]], 2, 1))) == tuple(
      sorted(both.names))


class Framed(vocabularies.ByteVocabulary):
  """Texts stand between 0 and 2, as BART's between <s> and </s>."""

  eos_id = 2
  frame = ([0], [2])


def test_framed_features_by_hand():
  """Both sides in their frame, padding of its own, a decoder begun by 2."""
  encoding, vocabulary = features.FramedEncoderDecoder(1, 2), Framed()
  ids = [encoding.input_ids("ab", vocabulary),
         encoding.input_ids([0, 9], vocabulary)]
  assert ids == [[0, 100, 101, 2], [0, 9, 2]]
  assert encoding.target_ids("a", vocabulary) == [0, 100, 2]
  made = encoding.padded(ids, [[0, 100, 2], [2]], 5, 4)
  expected = {
      "encoder_input_tokens": [[0, 100, 101, 2, 1], [0, 9, 2, 1, 1]],
      "decoder_input_tokens": [[2, 0, 100, 2], [2, 2, 1, 1]],
      "decoder_target_tokens": [[0, 100, 2, 1], [2, 1, 1, 1]],
      "decoder_loss_weights": [[1, 1, 1, 0], [1, 0, 0, 0]],
  }
  assert tuple(made) == encoding.names
  for name, value in expected.items():
    assert made[name].dtype == np.int32
    assert made[name].tolist() == value
