"""SPoT's sources; expectations are what its preprocessors print."""

import pytest

from prompt_tuning.data import tasks, text_tasks


@pytest.mark.parametrize("label, target", [
    (0, "entailment"), (2, "contradiction"), (-1, "<unk>"), ("1", "neutral")])
def test_inference(pair, label, target):
  row = {"hypothesis": "h  x", "premise": "p\ny", "label": label}
  assert pair("spot_snli_v110", row) == (
      "snli hypothesis: h x premise: p y", target)


def test_names_and_columns_of_each_set(pair):
  assert pair("spot_anli_r2_v010", {
      "hypothesis": "h", "context": "c", "label": 0}) == (
          "anli_r2 hypothesis: h context: c", "entailment")
  assert pair("spot_doc_nli_v100", {
      "hypothesis": "h", "premise": "p", "label": "1"}) == (
          "doc_nli hypothesis: h premise: p", "entailment")
  assert pair("spot_aeslc_v100", {
      "email_body": "Dear  all", "subject_line": "s"}) == (
          "aeslc summarize: Dear  all", "s")
  assert pair("spot_glue_cola_v200", {
      "sentence": "S", "label": 1, "idx": 0}) == (
          "cola sentence: S", "acceptable")


def test_mnli_trains_on_one_and_is_judged_on_two():
  mixture = tasks.get_task("spot_glue_mnli_and_dev_v200")
  assert {task.name: dict(text_tasks.source_of(task).splits)
          for task, _ in mixture.tasks} == {
      "spot_glue_mnli_train_v200": {"train": "train"},
      "spot_glue_mnli_validation_matched_v200": {
          "validation": "validation_matched"},
      "spot_glue_mnli_validation_mismatched_v200": {
          "validation": "validation_mismatched"}}
