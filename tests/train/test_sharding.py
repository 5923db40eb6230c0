"""Sharding on 8 virtual devices, and batches of 2 processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.train import processes, sharding
from prompt_tuning.train.adafactor import Adafactor

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("arguments, shape", [
    ({}, (8, 1, 1)),
    ({"model": 2}, (4, 1, 2)),
    ({"fsdp": 8}, (1, 8, 1)),
    ({"data": 2, "model": 2, "fsdp": 2}, (2, 2, 2)),
])
def test_mesh_uses_all_devices(arguments, shape):
  mesh = sharding.make_mesh(**arguments)
  assert mesh.axis_names == ("data", "fsdp", "model")
  assert mesh.devices.shape == shape
  assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize("arguments, sentence", [
    ({"data": 3}, "data = 3.*needs 3 devices, and there are 8"),
    ({"model": 3}, "data = 2.*model = 3.*needs 6 devices"),
    ({"model": 16}, "needs 16 devices"),
    ({"fsdp": 0}, "make_mesh.fsdp = 0"),
])
def test_mesh_of_another_number_of_devices_is_refused(arguments, sentence):
  with pytest.raises(UserError, match=sentence):
    sharding.make_mesh(**arguments)


@pytest.mark.parametrize("names, shape, spec", [
    (("embed", "mlp"), (16, 64), P("fsdp", "model")),
    (("vocab", "embed"), (32, 16), P("model", "fsdp")),
    (("vocab", "embed"), (33, 16), P(None, "fsdp")),  # 33 does not divide.
    (("layers", "embed", "joined_kv"), (3, 16, 8), P(None, "fsdp", "model")),
    (("heads", "relpos_buckets"), (4, 32), P("model", None)),
    (("prompt", "embed"), (100, 16), P(None, "fsdp")),
    (("batch", "length", "embed"), (8, 4, 16), P(("data", "fsdp"), None, None)),
    (("mlp", "heads"), (8, 8), P("model", "fsdp")),  # An axis is taken once.
    (("mlp",), (8,), P("model")),
    (("lora_rank", "prompt"), (8, 8), P(None, None)),
    ((None, "mlp"), (8, 8), P(None, "model")),
    ((), (), P()),
    (None, (3, 4), P()),
])
def test_partition_spec(names, shape, spec):
  sizes = {"data": 2, "fsdp": 2, "model": 2}
  assert sharding.partition_spec(names, shape, sizes) == spec


def test_mesh_axes_of_size_1_split_nothing():
  sizes = {"data": 8, "fsdp": 1, "model": 1}
  assert sharding.partition_spec(("embed", "mlp"), (16, 64), sizes) == P(
      None, None)


def test_the_first_rule_of_a_name_counts():
  rules = (("mlp", ("fsdp", "model")), *sharding.LOGICAL_AXIS_RULES)
  sizes = {"data": 1, "fsdp": 2, "model": 4}
  assert sharding.partition_spec(("embed", "mlp"), (7, 8), sizes, rules) == P(
      None, ("fsdp", "model"))


def test_parameters_lie_where_the_rules_say_and_compute_the_same():
  mesh = sharding.make_mesh(data=2, model=2, fsdp=2)
  random = np.random.RandomState(0)
  params = {"mlp": {"wi": random.randn(16, 64).astype(np.float32),
                    "wo": random.randn(64, 16).astype(np.float32)},
            "scale": np.ones(16, np.float32)}
  axes = {"mlp": {"wi": ("embed", "mlp"), "wo": ("mlp", "embed")},
          "scale": ("embed",)}
  shardings = sharding.param_shardings(axes, params, mesh)
  placed = jax.device_put(params, shardings)
  assert placed["mlp"]["wi"].addressable_shards[0].data.shape == (8, 32)
  assert placed["scale"].sharding.spec == P("fsdp")

  def loss(params, x):
    hidden = jax.nn.relu(x @ params["mlp"]["wi"]) @ params["mlp"]["wo"]
    return jnp.mean(jnp.square(hidden * params["scale"]))

  x = random.randn(8, 16).astype(np.float32)
  batch = sharding.put_batch({"x": x}, mesh)
  np.testing.assert_allclose(
      jax.jit(loss)(placed, batch["x"]), loss(params, x), rtol=1e-5)


@pytest.mark.parametrize("axes, sentence", [
    (("embed",), r"^Parameter encoder/kernel: .*1 dimensions.*\(16, 64\)"),
    (("embed", "mpl"), "^Parameter encoder/kernel: .*'mpl' has no rule.*mlp"),
])
def test_wrong_axes_name_the_parameter(axes, sentence):
  tree = {"encoder": {"kernel": jax.ShapeDtypeStruct((16, 64), jnp.float32)}}
  with pytest.raises(UserError, match=sentence):
    sharding.param_shardings(
        {"encoder": {"kernel": axes}}, tree, sharding.make_mesh())


def state_specs(optimizer):
  """{path in the state: its spec}, over parameters of two shapes."""
  mesh = sharding.make_mesh(fsdp=2, model=2)
  params = {"wi": jax.ShapeDtypeStruct((64, 32), jnp.float32),
            "scale": jax.ShapeDtypeStruct((64,), jnp.float32)}
  shardings = sharding.param_shardings(
      {"wi": ("embed", "mlp"), "scale": ("embed",)}, params, mesh)
  found = sharding.state_shardings(
      jax.eval_shape(optimizer.init, params), params, shardings, mesh)
  return {
      jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec
      for path, leaf in jax.tree_util.tree_leaves_with_path(found)}


def test_adamw_moments_lie_where_their_parameters_do():
  assert state_specs(optax.adamw(0.1)) == {
      "0/count": P(),
      "0/mu/scale": P("fsdp"), "0/mu/wi": P("fsdp", "model"),
      "0/nu/scale": P("fsdp"), "0/nu/wi": P("fsdp", "model")}


def test_factored_moments_are_copied_and_full_ones_split():
  assert state_specs(
      Adafactor(0.1, min_dim_size_to_factor=32, beta1=0.9)) == {
          "count": P(),
          "moments/scale/m": P("fsdp"), "moments/scale/v": P("fsdp"),
          "moments/wi/m": P("fsdp", "model"),
          "moments/wi/v_row": P(), "moments/wi/v_col": P()}


def test_batches_are_split_over_data_and_fsdp():
  mesh = sharding.make_mesh(data=2, fsdp=2, model=2)
  rows = np.arange(24).reshape(8, 3)
  batch = sharding.put_batch({"inputs": rows, "lengths": rows[:, 0]}, mesh)
  np.testing.assert_array_equal(batch["inputs"], rows)
  assert {s.data.shape for s in batch["inputs"].addressable_shards} == {(2, 3)}
  assert batch["lengths"].sharding == sharding.batch_sharding(mesh)
  assert sharding.process_shard(mesh) == (0, 1)


@pytest.mark.parametrize("batch_size", [0, 1, 6, 9])
def test_batch_that_does_not_divide_is_refused(batch_size):
  mesh = sharding.make_mesh(data=2, fsdp=2, model=2)
  sharding.check_batch_size(4, mesh)
  sentence = f"batch {batch_size} not divisible by the 4 data shards"
  with pytest.raises(UserError, match=sentence):
    sharding.check_batch_size(batch_size, mesh)


@pytest.fixture
def joined(monkeypatch):
  """What `jax.distributed.initialize` is called with; no variables are set."""
  for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
    monkeypatch.delenv(f"JAX_{name}", raising=False)
  calls = []
  monkeypatch.setattr(
      jax.distributed, "initialize", lambda **settings: calls.append(settings))
  return calls


def test_one_process_joins_nothing(joined):
  sharding.initialize_distributed()
  assert not joined


def test_settings_come_from_gin_then_from_the_environment(joined, monkeypatch):
  monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
  monkeypatch.setenv("JAX_PROCESS_ID", "1")
  sharding.initialize_distributed("host:1", process_id=2)
  sharding.initialize_distributed("auto")
  patience = {"heartbeat_timeout_seconds": processes.HEARTBEAT_SECONDS}
  assert joined == [
      {"coordinator_address": "host:1", "num_processes": 4, "process_id": 2,
       **patience}, patience]


def test_auto_may_stand_in_the_environment(monkeypatch):
  """Where JAX itself must not see it: it looks for an address there."""
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "auto")
  seen = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda **settings:
                      seen.append(os.environ.get("JAX_COORDINATOR_ADDRESS")))
  sharding.initialize_distributed()
  assert seen == [None]
  assert os.environ["JAX_COORDINATOR_ADDRESS"] == "auto"


@pytest.mark.parametrize("arguments, sentence", [
    ({"coordinator_address": "host:1", "process_id": 0},
     "num_processes is not set.*JAX_NUM_PROCESSES"),
    ({"num_processes": 2}, "coordinator_address is not set"),
    ({"coordinator_address": "host:1", "num_processes": 2, "process_id": 2},
     "process_id = 2 must be between 0 and num_processes - 1 = 1"),
])
def test_half_of_the_settings_is_refused(joined, arguments, sentence):
  with pytest.raises(UserError, match=sentence):
    sharding.initialize_distributed(**arguments)
  assert not joined


def test_an_environment_without_a_number_is_refused(joined, monkeypatch):
  monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
  with pytest.raises(UserError, match="JAX_NUM_PROCESSES = 'two'"):
    sharding.initialize_distributed()


PROCESS = """
import json
import jax
import numpy as np
from prompt_tuning.train import sharding
sharding.initialize_distributed()
mesh = sharding.make_mesh(model={model})
index, count = sharding.process_shard(mesh)
rows = np.arange(24, dtype=np.float32).reshape(8, 3)
mine = rows[index * 8 // count:(index + 1) * 8 // count]
batch = sharding.put_batch({{"x": mine}}, mesh)["x"]
weights = np.arange(8, dtype=np.float32)[:, None]
total = jax.jit(lambda x: (x * weights).sum())(batch)
print(json.dumps([index, count, batch.shape, float(total)]))
"""


@pytest.mark.parametrize("model, parts", [(1, 2), (4, 1)])
def test_two_processes_make_the_batch_of_one(model, parts):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  processes = [
      subprocess.Popen(
          [sys.executable, "-c", PROCESS.format(model=model)], cwd=ROOT,
          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
          env={**os.environ,
               "JAX_PLATFORMS": "cpu",
               "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
               "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
               "JAX_NUM_PROCESSES": "2",
               "JAX_PROCESS_ID": str(i)})
      for i in range(2)]
  try:
    outputs = [process.communicate(timeout=100) for process in processes]
  finally:
    for process in processes:
      process.kill()
  weighted = (np.arange(24.0).reshape(8, 3) * np.arange(8.0)[:, None]).sum()
  for i, (process, (out, err)) in enumerate(zip(processes, outputs)):
    assert process.returncode == 0, err
    index, count, shape, total = json.loads(out.splitlines()[-1])
    assert (index, count) == (i % parts, parts)
    assert shape == [8, 3]
    assert total == weighted
