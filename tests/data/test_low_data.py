"""Draws of few examples.

Oracles: a sort of all examples by the digest that is stated, and sets.
"""

import hashlib

import pytest

from prompt_tuning import errors
from prompt_tuning.data import files, low_data, table_tasks, tasks

COUNTS = {"train": 40, "validation": 12, "test": 9}


def examples(split):
  return iter([{"inputs": f"{split} {i}", "targets": str(i)}
               for i in range(COUNTS[split])])


WHOLE = tasks.Task(
    "mine", examples, tuple(COUNTS), fingerprint="rows", stops=("\n",))


def drawn(split="train", **settings):
  task = low_data.low_data(WHOLE, **{"examples": 10, "seed": 0} | settings)
  return [row["inputs"] for row in task.examples(split)]


@pytest.mark.parametrize("split, count", [("train", 10), ("validation", 3)])
@pytest.mark.parametrize("seed", [0, 3])
def test_examples_are_the_first_by_digest(split, count, seed):
  order = sorted(range(COUNTS[split]), key=lambda index: hashlib.sha256(
      f"{seed} {split} {index}".encode()).hexdigest())
  assert drawn(split, seed=seed) == [
      f"{split} {index}" for index in sorted(order[:count])]


def test_a_seeds_draws_lie_in_one_another_and_seeds_differ():
  small, large = drawn(examples=5), drawn(examples=20)
  assert set(small) < set(large)
  assert len(large) == len(set(large)) == 20
  assert set(drawn(examples=20, seed=1)) != set(large)


def test_tests_are_whole_and_the_rest_is_the_tasks():
  task = low_data.low_data(WHOLE, examples=10, seed=2)
  assert (task.name, task.stops) == ("mine_10_2", ("\n",))
  assert len(list(task.examples("test"))) == 9
  prints = {low_data.low_data(WHOLE, size, seed).fingerprint(split)
            for size in (10, 20) for seed in (0, 1)
            for split in ("train", "validation")}
  assert len(prints) == 8
  assert task.fingerprint("test") == "rows"


def test_a_task_from_files(tmp_path):
  """Its class makes tasks of other arguments."""
  path = tmp_path / "train.tsv"
  path.write_text("text\tlabel\n" + "".join(f"t{i}\t{i}\n" for i in range(9)))
  task = low_data.low_data(files.FileTask(train=str(path)), examples=4)
  assert len(list(task.examples("train"))) == 4


def test_draws_of_sizes_and_seeds():
  assert [task.name for task in low_data.draws(WHOLE, [5, 10], [0, 7])] == [
      "mine_5_0", "mine_5_7", "mine_10_0", "mine_10_7"]


def test_real_data_have_the_papers_sizes(shared_data, tmp_path):
  """E2E: 50 rows, and tables of 30 % as many."""
  from prompt_tuning.scripts import format_tables

  format_tables.main([
      "--dataset", "e2e", "--train", str(shared_data / "e2e/test.txt.gz"),
      "--dev", str(shared_data / "e2e/valid.txt.gz"), "--folder",
      str(tmp_path)])
  task = low_data.low_data(table_tasks.nlg_e2e(tmp_path), 50)
  assert [len(list(task.examples(split))) for split in (
      "train", "validation")] == [50, 15]


@pytest.mark.parametrize("settings, sentence", [
    ({"examples": 41}, "'train' of the task mine has 40 examples and 41 are"),
    ({"examples": 0}, "LOW_DATA_EXAMPLES .* is 0: it must be a whole number"),
    ({"examples": 0.5}, "is 0.5"),
    ({"validation_share": 0.0}, "validation_share is 0.0"),
    ({"task": tasks.Mixture("both", ())}, "is the mixture both")])
def test_what_cannot_be_drawn(settings, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    list(low_data.low_data(
        **{"task": WHOLE, "examples": 10} | settings).examples("train"))
