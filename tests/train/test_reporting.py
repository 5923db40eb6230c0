"""Logs that survive interruption, lines, the bar, and the curve."""

import io
import json
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.train import reporting


class Terminal(io.StringIO):
  """A stream that says it is a terminal."""

  def isatty(self):
    return True


@pytest.fixture
def open_reporter(tmp_path):
  """Opens reporters of one run, on a stream that is kept."""

  def opened(total_steps=100, first_step=0, **arguments):
    arguments.setdefault("stream", io.StringIO())
    return reporting.Reporter(
        tmp_path / "run", total_steps, first_step, **arguments)

  return opened


def records(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_numbers_are_logged_as_json_lines(open_reporter, tmp_path):
  with open_reporter() as reporter:
    reporter.train(10, {"loss": jnp.float32(2.5), "tokens": np.int64(7)})
    reporter.train(20, {"loss": float("nan"), "tokens": 8})
    reporter.evaluation(20, "sst2", {
        "accuracy": np.float64(0.5), "confusion": np.eye(2), "sample": "Ça va"})
  assert records(tmp_path / "run/train.jsonl") == [
      {"step": 10, "loss": 2.5, "tokens": 7},
      {"step": 20, "loss": None, "tokens": 8}]
  assert records(tmp_path / "run/inference_eval/sst2-metrics.jsonl") == [
      {"step": 20, "accuracy": 0.5, "confusion": [[1, 0], [0, 1]],
       "sample": "Ça va"}]


def test_the_log_is_on_disk_at_each_step(open_reporter, tmp_path):
  reporter = open_reporter()  # Never closed, as after kill -9.
  reporter.train(10, {"loss": 1.0})
  assert records(tmp_path / "run/train.jsonl") == [{"step": 10, "loss": 1.0}]


def test_a_resumed_run_logs_each_step_once(open_reporter, tmp_path):
  with open_reporter() as reporter:
    for step in (10, 20, 30, 40):
      reporter.train(step, {"loss": step})
    for step in (20, 40):
      reporter.evaluation(step, "sst2", {"accuracy": 0})
  log = tmp_path / "run/train.jsonl"
  with open(log, "a") as file:
    file.write('{"step": 50, "lo')  # Killed while writing.
  with open_reporter(first_step=20) as reporter:
    reporter.evaluation(20, "sst2", {"accuracy": 1})
    for step in (30, 40):
      reporter.train(step, {"loss": -step})
    reporter.evaluation(40, "sst2", {"accuracy": 2})
  assert [(r["step"], r["loss"]) for r in records(log)] == [
      (10, 10), (20, 20), (30, -30), (40, -40)]
  metrics = tmp_path / "run/inference_eval/sst2-metrics.jsonl"
  assert [(r["step"], r["accuracy"]) for r in records(metrics)] == [
      (20, 1), (40, 2)]
  assert not list((tmp_path / "run").rglob("*.tmp"))


def test_losses_and_metrics_of_a_step_share_a_line(open_reporter, tmp_path):
  """Also when a resumed run evaluates its first step once more."""
  for reporter in (open_reporter(), open_reporter(first_step=2)):
    reporter.evaluation(2, "sst2", {"loss": 0.5})
    reporter.evaluation(2, "sst2", {"accuracy": 90.0})
    reporter.close()
  (path,) = tmp_path.rglob("sst2-metrics.jsonl")
  assert records(path) == [{"step": 2, "loss": 0.5, "accuracy": 90.0}]


def test_a_run_that_starts_again_forgets_the_old_one(open_reporter, tmp_path):
  with open_reporter() as reporter:
    reporter.train(10, {"loss": 1.0})
  open_reporter().close()
  assert (tmp_path / "run/train.jsonl").read_text() == ""


def test_tensorboard_holds_numbers_and_texts(open_reporter, tmp_path):
  with open_reporter() as reporter:
    reporter.train(10, {"loss": 2.5, "broken": float("inf")})
    reporter.evaluation(10, "sst2", {"accuracy": 0.5, "sample": "a text"})
  events = b"".join(
      path.read_bytes() for path in (tmp_path / "run/tensorboard").iterdir())
  for found in (b"train/loss", b"eval/sst2/accuracy", b"eval/sst2/sample",
                b"a text"):
    assert found in events
  assert b"broken" not in events


def test_lines_are_few_and_the_last_step_has_one(open_reporter):
  stream = io.StringIO()
  with open_reporter(1000, stream=stream) as reporter:
    reporter.note("Training 1,600 parameters [frozen: 5,000,000].")
    for step in range(10, 1001, 10):
      reporter.advance(step)
      reporter.train(step, {"loss": 1 / step})
    reporter.evaluation(1000, "sst2", {"accuracy": 0.91234, "sample": "hidden"})
  first, *steps, last = stream.getvalue().splitlines()
  assert first == "Training 1,600 parameters [frozen: 5,000,000]."
  assert steps[0] == "step 10 of 1,000 · loss 0.1"
  assert steps[-1].startswith("step 1,000 of 1,000 · loss 0.001")
  assert len(steps) <= 3  # The loop takes much less than the 10 seconds.
  assert last == "step 1,000 · sst2 · accuracy 0.9123"


def test_a_terminal_gets_a_bar(open_reporter):
  stream = Terminal()
  with open_reporter(
      1_100_100, 1_100_050, initial_step=1_100_000, stream=stream) as reporter:
    reporter.train(1_100_100, {"loss": 0.25})
    reporter.note("A [note] of its own.")
  text = stream.getvalue()
  assert "step 1,100,100 of 1,100,100" in text and "loss 0.25" in text
  assert "A [note] of its own." in text


def test_pace_leaves_pauses_out(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(
      reporting, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
  pace = reporting._Pace()
  for step, now[0] in ((0, 100.0), (10, 105.0)):
    pace.update(step)
  pace.pause()
  for step, now[0] in ((10, 200.0), (20, 205.0)):
    pace.update(step)
  assert pace.text(1000) == ["2 steps/s", "8:20 left"]
  for step, now[0] in ((21, 215.0),):  # Half of the weight on 10 s at 0.1.
    pace.update(step)
  assert pace.text(0) == ["1.05 steps/s"]


def test_other_processes_are_silent(open_reporter, tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  stream = io.StringIO()
  with open_reporter(stream=stream) as reporter:
    reporter.note("nothing")
    reporter.advance(1)
    reporter.train(1, {"loss": 1.0})
    reporter.evaluation(1, "sst2", {"accuracy": 1.0})
  reporting.write_predictions(tmp_path / "run", "sst2", 1, [{"input": "a"}])
  assert not stream.getvalue() and not (tmp_path / "run").exists()


def test_predictions_are_rows_of_json(tmp_path):
  path = reporting.write_predictions(tmp_path, "sst2", 50, [
      {"input": "good film", "target": "positive", "output": np.array([5, 1]),
       "prediction": "positive"},
      {"input": b"bad", "target": "negative", "output": [6], "prediction": ""}])
  assert path == tmp_path / "inference_eval/sst2-000050.jsonl"
  assert records(path) == [
      {"input": "good film", "target": "positive", "output": [5, 1],
       "prediction": "positive"},
      {"input": "bad", "target": "negative", "output": [6], "prediction": ""}]
  assert os.listdir(path.parent) == [path.name]


def test_a_failing_row_leaves_the_old_predictions(tmp_path):
  path = reporting.write_predictions(tmp_path, "sst2", 1, [{"input": "kept"}])

  def rows():
    yield {"input": "lost"}
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    reporting.write_predictions(tmp_path, "sst2", 1, rows())
  assert records(path) == [{"input": "kept"}]


def test_a_directory_that_cannot_be_written_is_a_sentence(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match="Cannot write .*file/run.*directory"):
    reporting.Reporter(tmp_path / "file" / "run", 10)
  with pytest.raises(UserError, match="Cannot write .*sst2-000001.jsonl"):
    reporting.write_predictions(tmp_path / "file", "sst2", 1, [])


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="/dev/full is a Linux device")
def test_a_full_disk_is_a_sentence(open_reporter, tmp_path):
  log = tmp_path / "run/train.jsonl"
  with pytest.raises(UserError, match="Cannot write .*train.jsonl.*space"):
    with open_reporter() as reporter:
      reporter._log(log)._file = open("/dev/full", "w")
      reporter.train(1, {"loss": 1.0})


def test_the_curve_is_a_picture_of_both_logs(open_reporter, tmp_path):
  from matplotlib import image
  with open_reporter() as reporter:
    for step in range(10, 101, 10):
      reporter.train(step, {"loss": 300 / step})
  picture = tmp_path / "curve.png"
  reporting.learning_curve(tmp_path / "run", picture)
  one_panel = image.imread(picture).shape
  with open_reporter(first_step=100) as reporter:
    reporter.train(110, {"loss": float("nan")})
    reporter.evaluation(110, "sst2", {"accuracy": 0.0, "sample": "text"})
  reporting.learning_curve(tmp_path / "run", picture)
  two_panels = image.imread(picture).shape
  assert two_panels[0] == one_panel[0]
  assert two_panels[1] == 2 * one_panel[1]


def test_no_curve_without_a_step(tmp_path):
  with pytest.raises(UserError, match="no logged step"):
    reporting.learning_curve(tmp_path, tmp_path / "curve.png")
  assert not (tmp_path / "curve.png").exists()


def test_smoothing_keeps_a_constant_and_a_slope():
  np.testing.assert_allclose(reporting._smoothed(np.full(100, 3.0)), 3.0)
  line = np.arange(100.0)
  np.testing.assert_allclose(reporting._smoothed(line)[5:-5], line[5:-5])
