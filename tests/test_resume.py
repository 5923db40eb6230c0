"""A run that was interrupted ends as one that was not, bit for bit."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest

from prompt_tuning.checkpoints import runs
from prompt_tuning.train import reporting

# Evaluations, saves, lines of the log and epochs (of 5 batches) all fall on
# other steps.
RUN = {"TRAIN_STEPS": 13, "EVAL_PERIOD": 5, "SAVE_PERIOD": 3,
       "LOG_PERIOD": 4}


@pytest.fixture(autouse=True, scope="module")
def no_picture():
  """It takes half a second at each evaluation, and has its own tests."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reporting, "learning_curve", lambda *unused: None)
    yield


def contents(run):
  """What must be equal: arrays, data position, logs, predictions."""
  [step] = runs.RunCheckpoints(run, read_only=True).steps()
  folder = run / f"checkpoint_{step}"
  assert runs.damage(folder) is None
  manifest = json.loads((folder / "manifest.json").read_text())["content"]
  state = _arrays(folder, manifest)
  files = [
      path for pattern in ("train.jsonl", "inference_eval/*", "prompt.npy",
                           "numpy_checkpoints/checkpoint_?/*",
                           "numpy_checkpoints/checkpoint_??/*")
      for path in sorted(run.glob(pattern))]
  assert any(path.name == "encoder.prompt.prompt.prompt" for path in files)
  return {"step": step, "position": manifest["position"], **state, **{
      str(path.relative_to(run)): path.read_bytes() for path in files}}


def _arrays(folder, manifest):
  import orbax.checkpoint as ocp

  reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
  values = reader.restore(folder / "state", args=ocp.args.PyTreeRestore(
      item=dict.fromkeys(manifest["arrays"], 0), restore_args=dict.fromkeys(
          manifest["arrays"], ocp.RestoreArgs(restore_type=np.ndarray))))
  reader.close()
  return {name: np.asarray(value).tobytes() for name, value in values.items()}


def assert_same(one, other):
  assert one.keys() == other.keys()
  assert [name for name in one if one[name] != other[name]] == []


@pytest.fixture(scope="module")
def unbroken(command, tiny_flags, tmp_path_factory):
  run = tmp_path_factory.mktemp("unbroken")
  outcome = command(
      "train", *tiny_flags("prompt_finetune", MODEL_DIR=str(run), **RUN))
  assert outcome.status == 0, outcome.err
  return contents(run)


def test_the_unbroken_run_logs_what_it_should(unbroken):
  lines = unbroken["train.jsonl"].decode().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [4, 5, 8, 10, 12, 13]
  lines = unbroken["inference_eval/file-metrics.jsonl"].decode().splitlines()
  assert {json.loads(line)["step"] for line in lines} == {5, 10, 13}
  assert unbroken["position"]["data"]["step"] == 13


@pytest.mark.parametrize("number, status, steps", [
    (signal.SIGTERM, 0, (2, 7)), (signal.SIGINT, 130, (5,))])
def test_stopped_and_gone_on_with(
    command, tiny_flags, unbroken, tmp_path, monkeypatch, number, status,
    steps):
  """Stopped twice, between saves, lines of the log and evaluations."""
  advance = reporting.Reporter.advance
  flags = tiny_flags("prompt_finetune", MODEL_DIR=str(tmp_path), **RUN)
  for stop_at in steps:

    def advance_and_ask(self, step, stop_at=stop_at):
      advance(self, step)
      if step == stop_at:
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
      patch.setattr(reporting.Reporter, "advance", advance_and_ask)
      outcome = command("train", *flags)
    assert outcome.status == status
    assert f"Stopped at step {stop_at} on request" in outcome.err
    assert (tmp_path / f"checkpoint_{stop_at}" / "manifest.json").exists()
  outcome = command("train", *flags)
  assert outcome.status == 0, outcome.err
  for stop_at in set(steps) - {3, 6, 9, 12}:  # saves that the other has not
    (folder,) = tmp_path.glob(f"numpy_checkpoints/checkpoint_{stop_at}")
    for file in folder.iterdir():
      file.unlink()
  assert_same(contents(tmp_path), unbroken)


def test_killed_between_saves(command, tiny_flags, unbroken, tmp_path,
                              monkeypatch):
  """An exception stands for the kill: nothing after it is saved."""
  class Killed(BaseException):
    pass

  advance = reporting.Reporter.advance
  flags = tiny_flags("prompt_finetune", MODEL_DIR=str(tmp_path), **RUN)
  for stop_at in (1, 8):

    def advance_and_die(self, step, stop_at=stop_at):
      advance(self, step)
      if step == stop_at:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
      patch.setattr(reporting.Reporter, "advance", advance_and_die)
      command("train", *flags)
  outcome = command("train", *flags)
  assert outcome.status == 0, outcome.err
  assert_same(contents(tmp_path), unbroken)


def test_more_steps_than_at_first(command, tiny_flags, unbroken, tmp_path):
  """N steps, then M more with another TRAIN_STEPS, as one run of N + M."""
  for total in (6, 13):
    outcome = command("train", *tiny_flags(
        "prompt_finetune", MODEL_DIR=str(tmp_path), **RUN | {
            "TRAIN_STEPS": total}))
    assert outcome.status == 0, outcome.err
  found = contents(tmp_path)
  for name in ("step", "prompt.npy", *(
      name for name in found if name.startswith(
          ("trainable", "optimizer_state")))):
    assert found[name] == unbroken[name], name
  assert found["position"]["data"] == unbroken["position"]["data"]


def _training(run):
  """Whether a process has begun to write steps."""
  return any(run.glob("checkpoint_*/manifest.json"))


def _wait(condition, child, seconds=120):
  end = time.monotonic() + seconds
  while not condition():
    assert child.poll() is None, child.communicate()[0]
    assert time.monotonic() < end
    time.sleep(0.01)


def _newest(run):
  return max(runs.RunCheckpoints(run, read_only=True).steps(), default=-1)


def _process_flags(tiny_flags, run, steps):
  return tiny_flags(
      "prompt_finetune", MODEL_DIR=str(run), TRAIN_STEPS=steps,
      EVAL_PERIOD=steps, SAVE_PERIOD=1, LOG_PERIOD=5)


def test_signals_to_a_real_process(process, tiny_flags, tmp_path):
  """SIGKILL, then SIGTERM, each in the midst of training."""
  flags = _process_flags(tiny_flags, tmp_path / "run", 100_000)
  run = tmp_path / "run"
  for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 0)):
    before = _newest(run)
    child = process("train", *flags)
    _wait(lambda before=before: _newest(run) > before + 3, child)
    child.send_signal(number)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == status, output
    if number != signal.SIGKILL:
      assert "on request; the same command goes on from here." in output
      assert runs.damage(run / f"checkpoint_{_newest(run)}") is None
      assert not list(run.glob("checkpoint_*.tmp"))
    assert "Traceback" not in output


@pytest.mark.slow
def test_twenty_kills_at_random_moments(process, tiny_flags, tmp_path):
  unbroken, run = tmp_path / "unbroken", tmp_path / "run"
  steps = 400
  child = process("train", *_process_flags(tiny_flags, unbroken, steps))
  output, _ = child.communicate(timeout=300)
  assert child.returncode == 0, output
  flags = _process_flags(tiny_flags, run, steps)
  moments = random.Random(0)
  for number in range(20):
    before = _newest(run)
    child = process("train", *flags)
    if number % 4:  # in the midst of steps and saves; else, at the start too
      _wait(lambda before=before: _newest(run) > before, child)
    time.sleep(moments.uniform(0, 0.5 if number % 4 else 8.0))
    child.kill()
    child.communicate()
    assert _newest(run) >= before  # at most the save in flight is lost
  assert _newest(run) < steps, "the run was over before all kills"
  child = process("train", *flags)
  output, _ = child.communicate(timeout=300)
  assert child.returncode == 0, output
  kept = [name for name in contents(unbroken)
          if not name.startswith("numpy_checkpoints")]
  found, expected = contents(run), contents(unbroken)
  assert_same({name: found[name] for name in kept},
              {name: expected[name] for name in kept})
