"""Zero-shot between QQP and MRPC: predictions change words, targets do not."""

import pytest

from prompt_tuning.data import tasks


@pytest.mark.parametrize("prefix", ["", "taskless_", "task_index_"])
@pytest.mark.parametrize("end", ["", "_examples"])
@pytest.mark.parametrize("source, target, words", [
    ("qqp", "mrpc", ("duplicate", "equivalent")),
    ("mrpc", "qqp", ("equivalent", "duplicate"))])
def test_predictions_are_judged_in_the_words_of_the_task(
    prefix, end, source, target, words):
  # The original's variants without `_examples` give metrics dicts, and fail.
  name = f"{prefix}glue_{target}_from_{source}_v002{end}"
  task = tasks.get_task(name)
  theirs, own = words
  examples = [{"inputs": "a"}] * 3
  found = tasks.evaluate(
      task, examples, [own, f"not_{own}", own],
      [theirs, f"not_{theirs}", f"not_{theirs}"])
  assert found["accuracy"] == pytest.approx(200 / 3)
  assert found["f1"] == pytest.approx(200 / 3)
  assert task.splits == ("validation",)


def test_targets_are_not_translated():
  task = tasks.get_task("taskless_glue_mrpc_from_qqp_v002")
  assert tasks.postprocess(task, "duplicate", {}, True) == -1
  assert tasks.postprocess(task, "duplicate", {}, False) == 1


@pytest.mark.parametrize("prefix", ["", "taskless_", "task_index_"])
def test_mixtures_train_on_the_one_and_judge_on_the_other(prefix):
  mixture = tasks.get_task(
      f"{prefix}glue_qqp_from_mrpc_zeroshot_v002_examples")
  splits = {task.name: task.splits for task, _ in mixture.tasks}
  assert splits == {
      f"{prefix}glue_mrpc_v002": ("train", "validation", "test"),
      f"{prefix}glue_qqp_from_mrpc_v002_examples": ("validation",)}
