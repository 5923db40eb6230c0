"""Where arrays live: the mesh, the rules from logical axes to it, and batches.

A model names the axes of its parameters ("embed", "mlp", …) and knows no
devices. Rules in T5X's manner say which mesh axis each name is split over, so
that one model runs on one device, on eight, and on many hosts:

  data   batches are split, parameters are copied;
  fsdp   batches are split, and so are parameters (fully sharded);
  model  parameters are split within a layer, batches are copied.
"""

import math
import os
from typing import Any, Mapping, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.train import processes

MESH_AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

# The axes of what is put into a model and trained. It is small: every device
# has all of it, and any one host can write it to a file.
TRAINED_AXES = ("prompt", "prompt_embed", "prompt_hidden", "prompt_rank",
                "prefix", "tasks", "lora_rank", "adapter")

# The logical axes of T5X and of the original, and the mesh axes they are split
# over. Put a rule in front to override one: the first that has the name counts.
# A later one is for what is still whole then, as the biases of inner widths
# are, so that with full sharding no device holds more than its share.
LOGICAL_AXIS_RULES: Rules = (
    ("batch", BATCH_AXES),
    ("vocab", "model"),
    ("embed", "fsdp"),
    ("mlp", "model"),
    ("heads", "model"),
    ("kv", None),
    ("joined_kv", "model"),
    ("relpos_buckets", None),
    ("layers", None),
    ("stack", None),
    ("length", None),
    ("token_types", None),
    *((axis, None) for axis in TRAINED_AXES),
    ("vocab", "fsdp"),
    ("mlp", "fsdp"),
    ("heads", "fsdp"),
    ("joined_kv", "fsdp"),
)


def make_mesh(
    data: int | None = None, model: int = 1, fsdp: int = 1
) -> Mesh:
  """A mesh of all devices of all processes, with axes `MESH_AXES`.

  Devices that share a layer are neighbours, in one process where they fit, and
  the rows of a process follow each other.

  Args:
    data: how many copies of the parameters; None for as many as devices allow.
    model: over how many devices a layer is split.
    fsdp: over how many devices parameters are fully sharded.

  Returns:
    The mesh.

  Raises:
    UserError: when the sizes do not multiply to the number of devices.
  """
  devices = sorted(
      jax.devices(), key=lambda device: (device.process_index, device.id))
  for name, size in (("data", data), ("fsdp", fsdp), ("model", model)):
    if size is not None and size < 1:
      raise UserError(f"make_mesh.{name} = {size} must be 1 or more.")
  if data is None:
    data = max(len(devices) // (fsdp * model), 1)
  if data * fsdp * model != len(devices):
    raise UserError(
        f"A mesh of make_mesh.data = {data}, fsdp = {fsdp} and model = {model} "
        f"needs {data * fsdp * model} devices, and there are {len(devices)}; "
        "change the sizes so that their product is that number.")
  return Mesh(np.reshape(devices, (data, fsdp, model)), MESH_AXES)


def partition_spec(
    names: Sequence[str | None] | None,
    shape: Sequence[int],
    sizes: Mapping[str, int],
    rules: Rules = LOGICAL_AXIS_RULES,
) -> PartitionSpec:
  """The mesh axes that one array is split over.

  A dimension stays whole when its length does not divide by the mesh axes, and
  when an earlier dimension already took them.

  Args:
    names: the logical axis of each dimension; None for a dimension, or for all,
      to keep it whole.
    shape: the array's shape.
    sizes: the size of each mesh axis, as in `mesh.shape`.
    rules: see `LOGICAL_AXIS_RULES`.

  Returns:
    The spec, one entry a dimension.

  Raises:
    UserError: when the number of names is not the rank, or a name has no rule.
  """
  if names is None:
    return PartitionSpec()
  if len(names) != len(shape):
    raise UserError(
        f"logical axes {tuple(names)} name {len(names)} dimensions of an array "
        f"of shape {tuple(shape)}; name each of its {len(shape)}.")
  taken = set()
  spec = [None] * len(shape)
  choices = [_mesh_axes(name, rules) for name in names]
  for rank in range(max(map(len, choices), default=0)):
    for i, (length, axes_of) in enumerate(zip(shape, choices, strict=True)):
      axes = axes_of[rank] if rank < len(axes_of) else ()
      split = math.prod(sizes[axis] for axis in axes)
      if spec[i] or split == 1 or length % split or taken & set(axes):
        continue
      taken |= set(axes)
      spec[i] = axes if len(axes) > 1 else axes[0]
  return PartitionSpec(*spec)


def param_shardings(
    axes_tree: Any,
    abstract_tree: Any,
    mesh: Mesh,
    rules: Rules = LOGICAL_AXIS_RULES,
) -> Any:
  """The sharding of every parameter.

  Args:
    axes_tree: the parameters' tree with, at each leaf, a tuple of the logical
      names of its dimensions, or None for a parameter that is copied.
    abstract_tree: the parameters' tree with anything that has a shape.
    mesh: from `make_mesh`.
    rules: see `LOGICAL_AXIS_RULES`.

  Returns:
    The tree of `NamedSharding`s. See `partition_spec` for what stays whole.

  Raises:
    UserError: naming the parameter, as `partition_spec`.
  """

  def sharding(path, leaf, names):
    try:
      spec = partition_spec(names, leaf.shape, mesh.shape, rules)
    except UserError as error:
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise UserError(f"Parameter {name}: {error}") from error
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, abstract_tree, axes_tree)


def state_shardings(
    abstract_state: Any, abstract_params: Any, shardings: Any, mesh: Mesh
) -> Any:
  """The sharding of an optimizer's state: moments lie where parameters do.

  Args:
    abstract_state: the state's tree, as from `jax.eval_shape(optimizer.init)`.
    abstract_params: the trained parameters' tree.
    shardings: their shardings, from `param_shardings`.
    mesh: from `make_mesh`.

  Returns:
    The tree of shardings. A leaf of the state belongs to a parameter when its
    path contains the parameter's and the shapes are equal; the others (counts,
    factored moments) are small, and are copied.
  """
  leaves = jax.tree_util.tree_leaves_with_path(abstract_params)
  by_path = {
      _keys(path): (leaf.shape, sharding)
      for (path, leaf), sharding in zip(
          leaves, jax.tree.leaves(shardings), strict=True)}
  copied = NamedSharding(mesh, PartitionSpec())

  def find(path, leaf):
    keys = _keys(path)
    # The longest part first: a parameter's path can end with another's.
    parts = sorted(
        (keys[start:stop] for start in range(len(keys))
         for stop in range(start + 1, len(keys) + 1)), key=len, reverse=True)
    for part in parts:
      if part in by_path:
        shape, sharding = by_path[part]
        return sharding if shape == leaf.shape else copied
    return copied

  return jax.tree_util.tree_map_with_path(find, abstract_state)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Rows over the data and the fully sharded devices, the rest whole."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises a `UserError` unless the global batch divides over the devices."""
  shards = _batch_shards(mesh)
  if batch_size < 1 or batch_size % shards:
    raise UserError(
        f"batch {batch_size} not divisible by the {shards} data shards of the "
        f"mesh; set BATCH_SIZE to a multiple of {shards}, or make_mesh.data "
        "and make_mesh.fsdp to sizes whose product divides it.")


def process_shard(mesh: Mesh) -> tuple[int, int]:
  """Which part of every global batch this process has to read.

  Returns:
    (index, count): this process reads the index-th of count equal, consecutive
    parts. Processes that split a layer between them read the same part.

  Raises:
    UserError: when the parts of two processes overlap without being equal.
  """
  shards = _batch_shards(mesh)
  rows = {}
  positions = batch_sharding(mesh).devices_indices_map((shards,))
  for device, (part,) in positions.items():
    start, stop, _ = part.indices(shards)
    rows.setdefault(device.process_index, set()).update(range(start, stop))
  parts = sorted({tuple(sorted(part)) for part in rows.values()})
  if sum(map(len, parts)) != shards or len({len(part) for part in parts}) > 1:
    raise UserError(
        f"A mesh of {dict(mesh.shape)} cannot be laid over "
        f"{jax.process_count()} processes so that each reads its own rows; set "
        "make_mesh.model to a divisor or a multiple of the "
        f"{jax.local_device_count()} devices of a process.")
  return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def put_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, axis: int = 0
) -> dict[str, jax.Array]:
  """Makes the global batch of the rows that each process has read.

  Args:
    batch: for each feature, [local rows, ...]: this process's `process_shard`.
    mesh: from `make_mesh`.
    axis: which axis the rows are on.

  Returns:
    For each feature, [B, ...], split by `batch_sharding`.
  """
  sharding = batch_sharding(mesh, axis)
  return {
      name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
      for name, rows in batch.items()}


def initialize_distributed(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
  """Joins the processes of a run; without settings there is only this one.

  Call it before anything asks for a device. What is not given is read from
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

  Args:
    coordinator_address: host:port of process 0, the same for all processes; or
      "auto", where JAX finds all three itself (Cloud TPU, Slurm, Open MPI).
    num_processes: how many processes.
    process_id: this process, from 0.

  Raises:
    UserError: when only some of the three are set, or do not fit together.
  """
  if jax.distributed.is_initialized():
    return
  settings = {
      "coordinator_address": _setting(
          coordinator_address, "JAX_COORDINATOR_ADDRESS", str),
      "num_processes": _setting(num_processes, "JAX_NUM_PROCESSES", int),
      "process_id": _setting(process_id, "JAX_PROCESS_ID", int)}
  if all(value is None for value in settings.values()):
    return
  if settings["coordinator_address"] == "auto":
    processes.initialize()
    return
  missing = [name for name, value in settings.items() if value is None]
  if missing:
    raise UserError(
        f"{missing[0]} is not set, and the others are: set "
        f"JAX_{missing[0].upper()} in the environment of every process.")
  if not 0 <= settings["process_id"] < settings["num_processes"]:
    raise UserError(
        f"process_id = {settings['process_id']} must be between 0 and "
        f"num_processes - 1 = {settings['num_processes'] - 1}: correct "
        "JAX_PROCESS_ID.")
  processes.initialize(**settings)


def _mesh_axes(name: str | None, rules: Rules) -> list[tuple[str, ...]]:
  """The mesh axes of a logical axis, by rule; () is for one that stays whole.

  A first rule that keeps the axis whole has no second.
  """
  if name is None:
    return []
  found = [(axes,) if isinstance(axes, str) else tuple(axes or ())
           for known, axes in rules if known == name]
  if found:
    return found if found[0] else []
  raise UserError(
      f"logical axis {name!r} has no rule; use one of "
      f"{', '.join(dict(rules))}, or add a rule.")


def _batch_shards(mesh: Mesh) -> int:
  return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def _keys(path) -> tuple[str, ...]:
  return tuple(
      jax.tree_util.keystr((key,), simple=True) for key in path)


def _setting(value, variable: str, kind):
  """The value given, or else the environment's."""
  if value is not None:
    return value
  text = os.environ.get(variable)
  if not text:
    return None
  try:
    return kind(text)
  except ValueError as error:
    raise UserError(
        f"The environment variable {variable} = {text!r} is not a whole "
        "number; correct or unset it.") from error
