"""The best state of a run: which one it is, and what is kept of it."""

import json

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.formats import npy
from prompt_tuning.train import best


@pytest.mark.parametrize("metric, values, expected", [
    ("loss", [3.0, 2.0, 2.0, 2.5, 1.0], [1, 1, 0, 0, 1]),
    ("a/loss", [3.0, 4.0], [1, 0]),
    ("accuracy", [0.0, 50.0, 50.0, 60.0], [1, 1, 0, 1]),
    ("accuracy", [float("nan"), 0.0, float("nan")], [0, 1, 0]),
    ("ter", [60.0, 61.0], [1, 0])])
def test_which_evaluation_is_the_best_so_far(
    tmp_path, metric, values, expected):
  with best.Best(str(tmp_path), metric) as watched:
    found = [watched.improves({f"a/{metric.rpartition('/')[2]}": value})
             for value in values]
  assert found == [bool(one) for one in expected]


def test_of_several_tasks_the_mean_counts(tmp_path):
  with best.Best(str(tmp_path), "loss", 2.0) as watched:
    assert not watched.improves({"a/loss": 1.0, "b/loss": 3.1})
    assert watched.improves({"a/loss": 1.0, "b/loss": 2.9})
  assert watched.value == pytest.approx(1.95)


def test_nothing_is_watched_by_default(tmp_path):
  with best.Best(str(tmp_path), None) as watched:
    assert not watched.improves({"a/loss": 1.0})
  assert not list(tmp_path.iterdir())


def test_a_metric_that_no_evaluation_gives(tmp_path):
  with best.Best(str(tmp_path), "bleu") as watched, pytest.raises(
      errors.UserError, match="'bleu', which no evaluation gives: choose one "
      "of a/accuracy, a/loss"):
    watched.improves({"a/loss": 1.0, "a/accuracy": 2.0})


def test_a_run_keeps_its_best(command, tiny_flags, tmp_path):
  """The last of three evaluations is not the best."""
  run = tmp_path / "run"
  steps = {"TRAIN_STEPS": 6, "EVAL_PERIOD": 2, "SAVE_PERIOD": 2,
           "LEARNING_RATE": 0.3, "KEEP_BEST": "loss"}
  outcome = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(run), **steps))
  assert outcome.status == 0, outcome.err
  lines = [json.loads(line)
           for line in (run / "inference_eval" / "file-metrics.jsonl")
           .read_text().splitlines()]
  losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
  assert len(losses) == 3
  chosen = min(losses, key=losses.get)
  assert chosen != 6
  [checkpoint] = (run / "best").glob("checkpoint_*")
  assert checkpoint.name == f"checkpoint_{chosen}"
  np.testing.assert_array_equal(
      npy.read(run / "best" / "prompt.npy"),
      npy.read(run / "numpy_checkpoints" / f"checkpoint_{chosen}"
               / "encoder.prompt.prompt.prompt"))
  again = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(tmp_path / "again"), **steps
      | {"TRAIN_STEPS": chosen, "KEEP_BEST": None}))
  np.testing.assert_array_equal(
      npy.read(tmp_path / "again" / "prompt.npy"),
      npy.read(run / "best" / "prompt.npy"))
  assert again.result["file/loss"] == losses[chosen]
