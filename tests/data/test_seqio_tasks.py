"""seqio tasks and mixtures, against what seqio itself gives."""

import functools
import itertools
import json
import sys

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.data import (
  batches,
  features,
  tasks,
  token_ids,
  vocabularies,
)

pytestmark = pytest.mark.parity

seqio = pytest.importorskip("seqio")
tf = pytest.importorskip("tensorflow")

from prompt_tuning.data import seqio_tasks  # noqa: E402  (after the skip)

LENGTHS = {"inputs": 16, "targets": 4}
OURS = vocabularies.ByteVocabulary()
ROWS = [
    {"text": "good fun", "label": 1, "key": "a"},
    {"text": "a film that is much too long for words", "label": 0, "key": "b"},
    {"text": "", "label": 1, "key": "é"},
]


def source(rows=None):
  rows = ROWS if rows is None else rows

  def dataset_fn(split, shuffle_files, seed=None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_tensor_slices(
        {name: [row[name] for row in rows] for name in rows[0]})

  return seqio.FunctionDataSource(dataset_fn, splits=["train", "validation"])


@seqio.map_over_dataset
def to_text(row, words=("negative", "positive")):
  return {"inputs": row["text"], "targets": tf.gather(words, row["label"]),
          "key": row["key"]}


def output_features(vocabulary=None, **settings):
  vocabulary = vocabulary or seqio.ByteVocabulary()
  return {name: seqio.Feature(vocabulary, **settings)
          for name in ("inputs", "targets")}


TAIL = [seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos_after_trim]


def predict_metric(targets, predictions):
  return {"hits": sum(t == p for t, p in zip(targets, predictions))}


def score_metric(targets, scores):
  return {"mean_score": float(np.mean(scores)), "scored": len(targets)}


def postprocess(text, example=None, is_target=False):
  return (text.strip(), example["key"]) if is_target else (text.upper(), "")


@pytest.fixture
def add():
  """Registers tasks and mixtures, and forgets them afterwards."""
  added = []

  def add_task(name, **settings):
    settings = {"source": source(), "preprocessors": [to_text, *TAIL],
                "output_features": output_features()} | settings
    added.append((seqio.TaskRegistry, name))
    return seqio.TaskRegistry.add(name, **settings)

  def add_mixture(name, members):
    added.append((seqio.MixtureRegistry, name))
    return seqio.MixtureRegistry.add(name, members)

  add_task.mixture = add_mixture
  yield add_task
  for registry, name in added:
    registry.remove(name)


def tokenized(task, lengths=LENGTHS, cache_dir=None, vocabulary=OURS):
  return features.tokenize(
      task, "train", vocabulary, vocabulary, lengths, cache_dir)


def from_seqio(task, lengths=LENGTHS):
  """What T5X would feed the model: [N, length] of each model feature."""
  dataset = task.get_dataset(lengths, "train", shuffle=False)
  dataset = seqio.EncDecFeatureConverter(pack=False)(dataset, lengths)
  rows = list(dataset.as_numpy_iterator())
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def of_all(examples, lengths=LENGTHS):
  count = range(len(examples))
  return features.model_features(
      [examples.ids("inputs", i) for i in count],
      [examples.ids("targets", i) for i in count],
      lengths["inputs"], lengths["targets"])


def assert_same_as_seqio(theirs, lengths=LENGTHS):
  expected = from_seqio(theirs, lengths)
  made = of_all(tokenized(seqio_tasks.from_task(theirs), lengths), lengths)
  assert made.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(made[name], value)
    assert made[name].dtype == value.dtype


def test_model_features_are_those_of_seqio(add):
  assert_same_as_seqio(add("plain"))


def test_features_without_eos_are_those_of_seqio(add):
  assert_same_as_seqio(
      add("bare", output_features=output_features(add_eos=False)))


def test_append_eos_before_the_cut_keeps_the_eos_here(add):
  # seqio's `append_eos` loses it when it cuts; the model would then see a
  # target that does not end. Shorter examples are the same.
  theirs = add("append", preprocessors=[
      to_text, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos])
  lengths = {"inputs": 64, "targets": 9}
  assert_same_as_seqio(theirs, lengths)
  made = of_all(tokenized(seqio_tasks.from_task(theirs)))
  assert (made["decoder_target_tokens"][:, -1] == 1).all()


def test_a_pipeline_without_eos_gets_exactly_one(add):
  theirs = add("no_eos", preprocessors=[
      to_text, seqio.preprocessors.tokenize])
  examples = tokenized(
      seqio_tasks.from_task(theirs), {"inputs": 64, "targets": 16})
  for i in range(len(examples)):
    ids = examples.ids("inputs", i).tolist()
    assert ids == [*OURS.encode(ROWS[i]["text"]), 1]


def test_what_is_cut_is_counted_and_texts_are_kept(add):
  examples = tokenized(tasks.get_task(add("counted").name))
  assert examples.truncated["inputs"] == token_ids.Truncation(1, 39 - 16)
  assert examples.truncated["targets"] == token_ids.Truncation(3, 3 * (9 - 4))
  assert examples.original(2)["inputs_pretokenized"] == ""
  assert examples.original(1)["targets_pretokenized"] == "negative"
  assert examples.original(2)["key"] == "é"


def test_sentencepiece_vocabularies_are_compared_by_content(
    add, shared_data, tmp_path):
  path = shared_data / "t5x" / "t5_vocab"
  copied = tmp_path / "elsewhere"
  copied.write_bytes(path.read_bytes())
  theirs = add("pieces", output_features=output_features(
      seqio.SentencePieceVocabulary(str(copied), extra_ids=100)))
  task = seqio_tasks.from_task(theirs)
  same = vocabularies.SentencePieceVocabulary(path, 100)
  made = of_all(tokenized(task, vocabulary=same))
  for name, value in from_seqio(theirs).items():
    np.testing.assert_array_equal(made[name], value)
  for other in (OURS, vocabularies.SentencePieceVocabulary(path, 99)):
    with pytest.raises(errors.UserError, match="give both the same one"):
      tokenized(task, vocabulary=other)


def test_metrics_and_postprocessing_are_the_tasks_own(add):
  add("judged", metric_fns=[predict_metric, score_metric],
      postprocess_fn=postprocess)
  task = tasks.get_task("judged")
  assert task.metric_fns == (predict_metric,)
  assert task.score_metric_fns == (score_metric,)
  examples = tokenized(task)
  originals = [examples.original(i) for i in range(3)]
  targets = [row["targets_pretokenized"] for row in originals]
  result = tasks.evaluate(
      task, originals, targets, ["positive"] * 3, [-1.0, -2.0, -3.0])
  assert result == {"hits": 0, "mean_score": -2.0, "scored": 3}
  assert tasks.postprocess(task, " x", originals[2], True) == ("x", "é")


@pytest.mark.parametrize("settings, message", [
    ({"metric_fns": [lambda targets, predictions, aux_values: {}]},
     "aux_values.*not supported"),
    ({"metric_objs": [seqio.metrics.PassthroughLegacyMetric.from_metric_fn(
        predict_metric)]}, "metric_objs.*not supported"),
    ({"output_features": output_features(seqio.PassThroughVocabulary(9)),
      "preprocessors": []}, "not supported"),
    ({"output_features": output_features(
        seqio.SentencePieceVocabulary("/none/spiece.model"))},
     "/none/spiece.model"),
])
def test_what_is_not_supported_is_refused(add, settings, message):
  add("refused", **settings)
  with pytest.raises(errors.UserError, match=message):
    tokenized(tasks.get_task("refused"))


def test_two_dimensional_features_are_refused(add):
  @seqio.map_over_dataset
  def choices(row):
    del row
    return {"inputs": tf.zeros([2, 3], tf.int32),
            "targets": tf.ones([2], tf.int32)}

  add("ranked", preprocessors=[choices], output_features={
      "inputs": seqio.Feature(seqio.ByteVocabulary(), rank=2),
      "targets": seqio.Feature(seqio.ByteVocabulary())})
  with pytest.raises(errors.UserError, match="ranked gives inputs of shape"):
    tokenized(tasks.get_task("ranked"))


def test_mixtures_have_seqios_rates(add):
  for name in ("first", "second", "third"):
    add(name)
  add.mixture("inner", [("second", 1.0), ("third", 3.0)])
  add.mixture("outer", [("first", lambda task: 2.5), ("inner", 4)])
  mixture = tasks.get_task("outer")
  assert isinstance(mixture, tasks.Mixture)
  rates = {task.name: rate for task, rate in mixture.tasks}
  assert rates == {"first": 2.5, "second": 1.0, "third": 3.0}
  stream = batches.TrainBatches(
      [(tokenized(task), rate) for task, rate in mixture.tasks], 4, 0, LENGTHS)
  (batch,) = itertools.islice(stream, 1)
  assert batch["encoder_input_tokens"].shape == (4, 16)


def test_text_files_are_cached_until_they_change(add, tmp_path):
  path = tmp_path / "rows.tsv"
  path.write_text("good\tpositive\nbad\tnegative\n")

  def parse(dataset, sep="\t"):
    def split(line):
      parts = tf.strings.split(line, sep)
      return {"inputs": parts[0], "targets": parts[1]}
    return dataset.map(split)

  theirs = add(
      "lines", preprocessors=[functools.partial(parse, sep="\t"), *TAIL],
      source=seqio.TextLineDataSource({"train": str(path)}))
  cache = tmp_path / "cache"
  first = tokenized(tasks.get_task("lines"), cache_dir=cache)
  assert len(first) == 2
  assert len(list(cache.iterdir())) == 1
  again = tokenized(seqio_tasks.from_task(theirs), cache_dir=cache)
  assert again.fingerprint == first.fingerprint
  assert len(list(cache.iterdir())) == 1
  path.write_text("good\tpositive\nbad\tnegative\nnice\tpositive\n")
  assert len(tokenized(tasks.get_task("lines"), cache_dir=cache)) == 3
  assert len(list(cache.iterdir())) == 2


def test_the_fingerprint_sees_data_and_preprocessors(add):
  add("one")
  add("two", preprocessors=[
      functools.partial(to_text, words=("no", "yes")), *TAIL])
  add("three", source=source(ROWS[:2]))
  prints = {tasks.get_task(name).fingerprint("train").replace(name, "")
            for name in ("one", "two", "three")}
  assert len(prints) == 3
  assert tasks.get_task("one").fingerprint("train") == (
      tasks.get_task("one").fingerprint("train"))


def test_missing_files_and_splits(add, tmp_path):
  @seqio.map_over_dataset
  def copy_line(line):
    return {"inputs": line, "targets": line}

  add("gone", preprocessors=[copy_line, *TAIL],
      source=seqio.TextLineDataSource({"train": str(tmp_path / "gone.txt")}))
  with pytest.raises(errors.UserError, match="seqio task gone"):
    tokenized(tasks.get_task("gone"))
  add("here")
  with pytest.raises(errors.UserError, match="has no split 'test'"):
    features.tokenize(tasks.get_task("here"), "test", OURS, OURS, LENGTHS)


def test_unknown_names_are_answered_with_the_nearest(add):
  add("taskless_glue_tiny_v200")
  with pytest.raises(
      errors.UserError, match="did you mean taskless_glue_tiny_v200"):
    tasks.get_task("taskless_glue_tiny")
  with pytest.raises(errors.UserError, match="docstring_package"):
    tasks.get_task("docstring_packages")
  with pytest.raises(errors.UserError, match="not a task"):
    tasks.get_task(7)


def test_without_seqio_the_message_says_so(monkeypatch):
  monkeypatch.setitem(sys.modules, "seqio", None)
  seqio_tasks._seqio.cache_clear()
  with pytest.raises(errors.UserError, match="seqio is not installed.*did you"):
    tasks.get_task("docstring_packages")
  monkeypatch.undo()
  seqio_tasks._seqio.cache_clear()


def test_our_registry_comes_first(add):
  add("both")
  mine = tasks.Task("both", lambda split: iter(()), ("train",))
  tasks.register("both", lambda: mine)
  try:
    assert tasks.get_task("both") is mine
    assert tasks.get_task(mine) is mine
  finally:
    del tasks._registry["both"]


def test_metrics_with_one_name_are_refused():
  task = tasks.Task(
      "x", lambda split: iter(()), ("train",),
      metric_fns=(predict_metric, predict_metric))
  with pytest.raises(errors.UserError, match="both named hits"):
    tasks.evaluate(task, [{}], ["a"], ["a"])


def test_tensorflow_sees_no_accelerator(add):
  add("seen")
  tasks.get_task("seen")
  assert not tf.config.get_visible_devices("GPU")
  assert json.dumps(sorted(seqio_tasks.names()))
