"""The same losses and the same prompt however devices share the work.

Oracle: the run on one device.
"""

import json
import re
import socket
import time

import gin
import jax
import numpy as np
import pytest

from prompt_tuning.checkpoints import base, hugging_face, runs
from prompt_tuning.formats import card, npy
from prompt_tuning.train import sharding

STEPS = 4
NO_EVALUATION = [
    "--gin.train_script.train.infer_eval_dataset_cfg=None",
    "--gin.train_script.train.train_eval_dataset_cfg=None",
    "--gin.LOG_PERIOD=1"]
ALONE = "--gin.train_script.train.mesh=@one_device_mesh"


@pytest.fixture(autouse=True, scope="module")
def one_device_mesh():
  """Lets gin bind a mesh of one of the eight devices."""
  gin.external_configurable(
      lambda: jax.sharding.Mesh(
          np.reshape(jax.devices()[:1], (1, 1, 1)), sharding.MESH_AXES),
      name="one_device_mesh")


def assert_same_losses(run, other):
  """Sums of another order: losses to 1e-5, norms of gradients to 1e-4."""
  np.testing.assert_allclose(
      _logged(run, "loss"), _logged(other, "loss"), rtol=1e-5)
  np.testing.assert_allclose(
      _logged(run, "gradient_norm"), _logged(other, "gradient_norm"),
      rtol=1e-4)


def _logged(run, name):
  lines = (run / "train.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert [record["step"] for record in records] == list(range(1, STEPS + 1))
  return np.array([record[name] for record in records])


@pytest.fixture(scope="module")
def train(command, tiny_flags, tmp_path_factory):
  def run(*flags, **macros):
    folder = tmp_path_factory.mktemp("run")
    outcome = command("train", *tiny_flags(
        "prompt_finetune", MODEL_DIR=str(folder), TRAIN_STEPS=STEPS, **macros),
        *NO_EVALUATION, *flags)
    assert outcome.status == 0, outcome.err
    return folder

  return run


@pytest.fixture(scope="module")
def alone(train):
  return train(ALONE)


MESHES = [{"data": 8}, {"data": 2, "model": 4}, {"fsdp": 8},
          {"data": 4, "fsdp": 2}]


def mesh_flags(sizes):
  return [f"--gin.sharding.make_mesh.{axis}={size}"
          for axis, size in sizes.items()]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_prompt_on_eight_devices(train, alone, sizes):
  run = train(*mesh_flags(sizes))
  assert_same_losses(run, alone)
  np.testing.assert_allclose(
      npy.read(run / "prompt.npy"), npy.read(alone / "prompt.npy"),
      rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_microbatches_on_eight_devices(train, alone):
  run = train("--gin.NUM_MICROBATCHES=2", "--gin.sharding.make_mesh.data=8")
  assert_same_losses(run, alone)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES[1:], ids=str)
def test_all_parameters_on_eight_devices(train, tiny_base, sizes):
  """Then the optimizer's state is sharded as well."""
  everything = {"TRAINABLE_REGEX": [".*"], "LEARNING_RATE": 0.01}
  alone = train(ALONE, **everything)
  run = train(*mesh_flags(sizes), **everything)
  exported = hugging_face.HuggingFaceWeights(run / "hugging_face")
  assert exported.arrays.keys() == base.open_base(tiny_base).arrays.keys()
  assert card.read_card(run / "prompt.json").base_fingerprint == (
      base.fingerprint(run / "hugging_face"))
  assert_same_losses(run, alone)


def test_a_run_goes_on_with_another_mesh(train, tiny_flags, command, alone):
  """Saved on one device, restored to eight."""
  folder = train(ALONE)
  outcome = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(folder), TRAIN_STEPS=STEPS + 1),
      *NO_EVALUATION, "--gin.sharding.make_mesh.fsdp=8")
  assert outcome.status == 0, outcome.err
  assert f"starting at step {STEPS}" in outcome.err
  assert runs.damage(folder / f"checkpoint_{STEPS + 1}") is None


def _free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


@pytest.fixture
def start_processes(process, tiny_flags, tmp_path):
  """Starts the processes of one run, with some devices each."""
  run = tmp_path / "run"

  def start(count, devices, *flags, **macros):
    macros = {"MODEL_DIR": str(run), "TRAIN_STEPS": STEPS,
              "SAVE_PERIOD": 2} | macros
    address = f"127.0.0.1:{_free_port()}"
    return run, [
        process("train", *tiny_flags("prompt_finetune", **macros),
                *NO_EVALUATION, *flags,
                XLA_FLAGS="--xla_force_host_platform_device_count="
                f"{devices}",
                JAX_COORDINATOR_ADDRESS=address, JAX_PROCESS_ID=str(number),
                JAX_NUM_PROCESSES=str(count)) for number in range(count)]

  return start


@pytest.fixture
def train_in_processes(start_processes):
  """Trains in several processes, which write one run."""

  def train(count, devices, *flags, **macros):
    run, children = start_processes(count, devices, *flags, **macros)
    for child in children:
      output, _ = child.communicate(timeout=300)
      assert child.returncode == 0, output
    return run

  return train


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 4}, {"data": 2, "model": 2}],
                         ids=str)
def test_two_processes(train_in_processes, alone, sizes):
  run = train_in_processes(2, 2, *mesh_flags(sizes))
  assert_same_run(run, alone)


@pytest.mark.slow
def test_a_run_goes_on_in_more_processes(train_in_processes, alone):
  """Of two with whole layers, then of four that share theirs."""
  train_in_processes(2, 2, TRAIN_STEPS=STEPS // 2)
  run = train_in_processes(4, 1, *mesh_flags({"data": 2, "model": 2}))
  assert_same_run(run, alone)


def assert_same_run(run, other):
  assert_same_losses(run, other)
  np.testing.assert_allclose(
      npy.read(run / "prompt.npy"), npy.read(other / "prompt.npy"),
      rtol=1e-4, atol=1e-4)
  assert runs.damage(run / f"checkpoint_{STEPS}") is None
  assert not list(run.glob("*.tmp"))


@pytest.mark.slow
def test_two_processes_train_and_export_all_parameters(
    train, train_in_processes):
  """Sharded over all four devices: no process holds the model."""
  everything = {"TRAINABLE_REGEX": [".*"], "LEARNING_RATE": 0.01}
  run = train_in_processes(
      2, 2, "--gin.sharding.make_mesh.fsdp=4", **everything)
  assert_same_losses(run, train(ALONE, **everything))
  assert card.read_card(run / "prompt.json").base_fingerprint == (
      base.fingerprint(run / "hugging_face"))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_is_killed(start_processes, command, tiny_flags, lost):
  """The other ends and says what to do; then the run goes on."""
  run, children = start_processes(
      2, 1, "--gin.LOG_PERIOD=100", TRAIN_STEPS=10**6)
  while not list(run.glob("checkpoint_*[02468]")):
    assert children[0].poll() is None, children[0].communicate()[0]
    time.sleep(0.2)
  children[lost].kill()
  output, _ = children[1 - lost].communicate(timeout=60)
  assert children[1 - lost].returncode != 0
  assert re.fullmatch(
      "error: A process of this run of 2 was lost .*: start all again with the "
      "same command, and training goes on from its last checkpoint.",
      output.splitlines()[-1]), output
  step = max(int(path.name.removeprefix("checkpoint_"))
             for path in run.glob("checkpoint_*[0-9]"))
  outcome = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(run), TRAIN_STEPS=step + 1),
      *NO_EVALUATION, ALONE)
  assert outcome.status == 0, outcome.err
  assert f"starting at step {step}" in outcome.err


def test_batch_that_two_shards_cannot_share(command, tiny_flags, tmp_path):
  outcome = command("train", *tiny_flags(
      "prompt_finetune", MODEL_DIR=str(tmp_path), TRAIN_STEPS=STEPS,
      BATCH_SIZE=9), "--gin.sharding.make_mesh.model=4")
  assert outcome.status == 2
  assert re.search("batch 9 not divisible by the 2 data shards", outcome.err)
