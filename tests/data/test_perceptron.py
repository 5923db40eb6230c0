"""Tasks for training by ranking, and their decoded and ranked neighbours."""

import pytest

from prompt_tuning.data import tasks, text_tasks


def splits(name):
  return dict(text_tasks.source_of(tasks.get_task(name)).splits)


@pytest.mark.parametrize("name, held_out", [
    ("glue_cola_v200", 500), ("glue_sst2_v200", 2000),
    ("glue_mrpc_v200", 200), ("glue_qqp_v200", 5000),
    ("glue_qnli_v200", 3000), ("glue_rte_v200", 200),
    ("super_glue_boolq_v102", 400), ("super_glue_cb_v102", 50),
    ("super_glue_copa_v102", 50), ("super_glue_rte_v102", 200),
    ("super_glue_wic_v102", 400)])
def test_what_is_held_out(name, held_out):
  for kind in ("perceptron", "generation"):
    assert splits(f"{name}_{kind}_train") == {
        "train": f"train[:-{held_out}]", "validation": f"train[-{held_out}:]"}
    assert splits(f"{name}_{kind}_test") == {"validation": "validation"}
  assert splits(f"{name}_rank_classification_validation") == {
      "validation": f"train[-{held_out}:]"}


def test_the_prediction_is_the_likeliest_label(pair):
  task = tasks.get_task("super_glue_cb_v102_perceptron_train")
  assert task.label_texts == ("entailment", "contradiction", "neutral")
  row = {"premise": "P", "hypothesis": "H", "label": 2, "idx": 0}
  for kind in ("perceptron", "generation"):
    assert pair(f"super_glue_cb_v102_{kind}_train", row) == (
        "hypothesis: H premise: P", "neutral")
  assert tasks.get_task(
      "super_glue_cb_v102_generation_train").label_texts is None


def test_mixtures():
  def members(name):
    return {task.name.rsplit("v200_", 1)[1]
            for task, _ in tasks.get_task(name).tasks}

  assert members("glue_rte_v200_perceptron") == {
      "perceptron_train", "perceptron_test"}
  assert members("glue_rte_v200_generation") == {
      "generation_train", "generation_test", "rank_classification_validation",
      "rank_classification_test"}
