"""Prompt recycling's tasks, decoded and ranked."""

import pytest

from prompt_tuning.data import tasks, text_tasks

QUESTIONS = {"question1": "A?", "question2": "B?", "label": 0, "idx": 0}


def test_reviews_are_raw(pair):
  row = {"text": "A  b<br />c", "label": 1}
  assert pair("pr:imdb_v100_0_1_verbalizers_train", row) == (
      "A  b<br />c", "1")
  assert pair("pr:imdb_v100_negative_positive_verbalizers_test", row) == (
      "A  b<br />c", "positive")


@pytest.mark.parametrize("words, target", [
    ("not_duplicate_duplicate", "not_duplicate"), ("0_1", "0"),
    ("unique_duplicate", "unique"),
    ("not_spc_duplicate_duplicate", "not duplicate")])
def test_qqp_in_four_words(pair, words, target):
  name = f"pr:glue_qqp_v200_{words}_verbalizers_training"
  assert pair(name, QUESTIONS) == ("question1: A? question2: B?", target)


def test_every_label_is_a_candidate(made):
  found = made("pr:glue_sst2_v200_test_rc",
               {"sentence": "a", "label": 1, "idx": 4},
               {"sentence": "b", "label": 0, "idx": 5})
  assert [(one["inputs"], one["targets"], one["idx"], one["is_correct"])
          for one in found] == [
      ("sentence: a", "negative", [0, 0], False),
      ("sentence: a", "positive", [0, 1], True),
      ("sentence: b", "negative", [1, 0], True),
      ("sentence: b", "positive", [1, 1], False)]


def test_ranked_by_score_alone(made):
  task = tasks.get_task("pr:glue_sst2_v200_test_rc")
  examples = made(task.name, {"sentence": "a", "label": 1, "idx": 0},
                  {"sentence": "b", "label": 0, "idx": 1})
  found = tasks.evaluate(
      task, examples, [one["targets"] for one in examples],
      scores=[-3.0, -1.0, -1.0, -2.0])
  assert found == {"accuracy": 100.0, "f1": 100.0, "auc-roc": 100.0,
                   "auc-pr": 100.0}


def test_record_ranks_its_entities_by_sum_and_by_token(made):
  task = tasks.get_task("pr:super_glue_record_v102_rc")
  examples = made(task.name, {
      "passage": "P", "query": "Q", "entities": ["x", "y z", "w"],
      "answers": ["w", "y z"], "idx": {"passage": 0, "query": 0}})
  assert [one["is_correct"] for one in examples] == [False, True, True]
  assert examples[0]["inputs"] == "query: Q entities: x, y z, w passage: P"
  judged = [{**one, "targets_length": 1 + len(one["targets"].split())}
            for one in examples]
  # "x" has the highest sum, "y z" the highest mean.
  found = tasks.evaluate(task, judged, ["x", "y z", "w"],
                         scores=[-2.2, -3.0, -2.4])
  assert found == {"accuracy": 0.0, "normed_accuracy": 100.0}


def test_validation_is_the_end_of_the_training_set():
  def splits(name):
    return dict(text_tasks.source_of(tasks.get_task(name)).splits)

  assert splits("pr:imdb_v100_0_1_verbalizers_train") == {
      "train": "train[:-1000]", "validation": "train[-1000:]"}
  assert splits("pr:super_glue_record_v102_training") == {
      "train": "train[:-10000]", "validation": "train[-10000:]"}
  assert splits("pr:imdb_v100_0_1_verbalizers_test") == {"validation": "test"}


def test_mixtures_for_evaluation_lack_the_training_task():
  whole = tasks.get_task("pr:glue_qqp_v200_0_1_verbalizers")
  judged = tasks.get_task("pr:glue_qqp_v200_0_1_verbalizers_eval")
  assert {task.name for task, _ in whole.tasks} - {
      task.name for task, _ in judged.tasks} == {
          "pr:glue_qqp_v200_0_1_verbalizers_training"}
