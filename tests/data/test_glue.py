"""GLUE's texts and labels; expectations are what T5's preprocessors print."""

import numpy as np
import pytest

from prompt_tuning.data import glue, tasks, text_tasks

PAIR = {"sentence1": "A.", "sentence2": "B  \"c\""}

TEXTS = [
    ("cola", {"sentence": "S"}, "cola sentence: S",
     ("unacceptable", "acceptable")),
    ("sst2", {"sentence": "a fine film "}, "sst2 sentence: a fine film ",
     ("negative", "positive")),
    ("mrpc", PAIR, "mrpc sentence1: A. sentence2: B  \"c\"",
     ("not_equivalent", "equivalent")),
    ("qqp", {"question1": "A?", "question2": "B?"},
     "qqp question1: A? question2: B?", ("not_duplicate", "duplicate")),
    ("mnli", {"premise": "P", "hypothesis": "H"},
     "mnli hypothesis: H premise: P",
     ("entailment", "neutral", "contradiction")),
    ("mnli_matched", {"premise": "P", "hypothesis": "H"},
     "mnli hypothesis: H premise: P",
     ("entailment", "neutral", "contradiction")),
    ("ax", {"premise": "P", "hypothesis": "H"},
     "mnli hypothesis: H premise: P",
     ("entailment", "neutral", "contradiction")),
    ("qnli", {"question": "Q?", "sentence": "S"},
     "qnli question: Q? sentence: S", ("entailment", "not_entailment")),
    ("rte", PAIR, "rte sentence1: A. sentence2: B  \"c\"",
     ("entailment", "not_entailment")),
    ("wnli", PAIR, "wnli sentence1: A. sentence2: B  \"c\"",
     ("not_entailment", "entailment")),
]


@pytest.mark.parametrize("name, row, inputs, labels", TEXTS)
@pytest.mark.parametrize("version", ["v002", "v200"])
def test_texts_and_labels(pair, name, row, inputs, labels, version):
  bare = inputs.split(" ", 1)[1]
  for label, target in [*enumerate(labels), (-1, "<unk>")]:
    full = {**row, "label": label, "idx": 7}
    assert pair(f"glue_{name}_{version}_examples", full) == (inputs, target)
    for variant in ("taskless_", "task_index_"):
      for end in ("", "_examples"):
        assert pair(f"{variant}glue_{name}_{version}{end}", full) == (
            bare, target)


@pytest.mark.parametrize("score, target", [
    # Halves go to the even fifth, in float32: 1.9 * 5 is 9.5 there, not less.
    (1.8, "1.8"), (0.5, "0.4"), (1.1, "1.2"), (1.9, "2.0"), (2.7, "2.8"),
    (3.333, "3.4"), (0.0, "0.0"), (5.0, "5.0")])
def test_stsb(pair, score, target):
  row = {**PAIR, "label": np.float32(score).item(), "idx": 0}
  assert pair("glue_stsb_v200_examples", row) == (
      "stsb sentence1: A. sentence2: B  \"c\"", target)


def test_judged_by_class():
  task = tasks.get_task("taskless_glue_mrpc_v002")
  result = tasks.evaluate(
      task, [{}] * 4, ["equivalent", "not_equivalent", "equivalent",
                       "not_equivalent"],
      ["equivalent", "equivalent", "equal", "not_equivalent"])
  # One true positive; a false one; "equal" is no label: a false negative.
  assert result == {"f1": 50.0, "accuracy": 50.0}


def test_stsb_is_judged_by_number():
  task = tasks.get_task("taskless_glue_stsb_v200")
  result = tasks.evaluate(
      task, [{}] * 3, ["1.0", "2.0", "5.0"], ["2.0", "4.0", "10.0"])
  assert result == pytest.approx(
      {"pearson_corrcoef": 100.0, "spearman_corrcoef": 100.0})
  assert tasks.postprocess(task, "no number", {}, False) == -1.0


def test_the_examples_variant_shows_predictions_and_labels():
  task = tasks.get_task("taskless_glue_sst2_v200_examples")
  rows = [{"inputs": "sentence: good"}, {"inputs": "sentence: bad"}]
  found = tasks.evaluate(
      task, rows, ["positive", "negative"], ["positive", "positive"])
  assert found["accuracy"] == 50.0
  assert "sentence: good" in found["sst2 samples"]
  assert found["sst2 negative samples"].count("example:") == 1
  assert "target - prediction cardinality: 1" in found["sst2 label stats"]
  plain = tasks.get_task("taskless_glue_sst2_v200")
  assert set(tasks.evaluate(plain, rows, ["positive"] * 2, ["positive"] * 2)
             ) == {"accuracy"}


def test_nine_tasks_have_an_index():
  assert glue.INDEXES == {
      "cola": 0, "mnli": 1, "mrpc": 2, "qnli": 3, "qqp": 4, "rte": 5,
      "sst2": 6, "stsb": 7, "wnli": 8, "ax": 1, "mnli_matched": 1,
      "mnli_mismatched": 1}


@pytest.mark.parametrize("prefix", ["", "taskless_", "task_index_"])
def test_the_mnli_mixtures_are_of_their_own_variant(prefix):
  # The original mixes the variant with the task's name in all three.
  mixture = tasks.get_task(f"{prefix}glue_mnli_and_dev_v200_examples")
  assert {task.name: rate for task, rate in mixture.tasks} == {
      f"{prefix}glue_{name}_v200_examples": 1.0
      for name in ("mnli", "mnli_matched", "mnli_mismatched")}


def test_sst2_rows_of_the_shared_data(made, shared_data):
  lines = (shared_data / "sst2" / "dev.tsv").read_text().splitlines()
  rows = [line.rsplit("\t", 1) for line in lines]
  found = made("taskless_glue_sst2_v200", *(
      {"sentence": text, "label": int(label), "idx": i}
      for i, (text, label) in enumerate(rows)))
  assert len(found) == 872
  assert [one["inputs"] for one in found] == [
      f"sentence: {text}" for text, _ in rows]
  assert sum(one["targets"] == "positive" for one in found) == sum(
      label == "1" for _, label in rows)


def test_splits_are_tfdss():
  def splits(name):
    return text_tasks.source_of(tasks.get_task(name)).splits

  assert splits("taskless_glue_ax_v200") == {"test": "test"}
  assert list(splits("taskless_glue_mnli_matched_v200")) == [
      "validation", "test"]
  assert "validation_mismatched" in splits("taskless_glue_mnli_v002")
