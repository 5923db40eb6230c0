"""Checkpoints of a run: what is trained, its optimizer, the step, the position.

    {directory}/checkpoint_{step}/manifest.json   sizes and sha256 of the rest
    {directory}/checkpoint_{step}/state/...       the arrays, written by orbax
    {directory}/numpy_checkpoints/checkpoint_{step}/encoder.prompt.prompt.prompt

orbax brings sharded arrays to disk and back; by itself it neither notices a
flipped bit nor goes back to an earlier checkpoint. Here a folder takes its
final name only when a manifest with the checksum of every file is in it and all
of it is on the disk, and it is held against that manifest before it is used.
"""

import collections
from collections.abc import Callable, Mapping
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from typing import Any
import warnings

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.formats import (
  fsync_folder,
  npy,
  why_not_written,
  write_whole,
)

_MANIFEST = "manifest.json"
_STATE = "state"
_FORMAT = 1
_NAME = re.compile(r"checkpoint_(\d+)")
_LEFTOVER = re.compile(r"checkpoint_\d+(\.discarded)?\.tmp")
# Other processes wait this long for the slowest one's disk.
_BARRIER_SECONDS = 1200
# Times that the folder of a failed save is tried to be removed.
_REMOVALS = 20
# What process 0 tells the others when there is no step to restore.
_NOTHING, _NOTHING_GOOD = -1, -2


class RunCheckpoints:
  """Saves a run in the background and restores the newest intact save.

  With several processes every method is called by all of them, in the same
  order, over one shared folder; process 0 alone names and deletes folders.

  Use as a context manager, or call `close`: a process that ends while a save
  is in flight loses that save (never an earlier one).
  """

  def __init__(
      self,
      directory: str | os.PathLike,
      keep: int | None = 1,
      read_only: bool = False,
  ):
    """Prepares the folder: makes it, tries it, removes leftovers of kills.

    Args:
      directory: the run's folder.
      keep: number of checkpoints that stay; None for all of them.
      read_only: whether the folder belongs to someone else (evaluation beside
        a training run): nothing in it is touched, and `save` is refused.

    Raises:
      UserError: if nothing can be written into the folder, or `keep` is not
        positive.
    """
    if keep is not None and keep < 1:
      raise UserError(
          f"keep={keep} would leave no checkpoint: set it to 1 or more, or to "
          "None to keep all")
    self.directory = os.path.abspath(directory)
    self._keep = keep
    self._read_only = read_only
    self._writer = None  # orbax's, made when needed: its import is slow.
    self._thread: threading.Thread | None = None
    self._error: Exception | None = None
    self._verified: set[int] = set()  # Steps that this object found intact.
    if not read_only and jax.process_index() == 0:
      self._prepare()

  def __enter__(self) -> "RunCheckpoints":
    if not self._read_only:
      self._prepare_writer()  # not at the first save, which a step waits for
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Steps that have a folder, ascending, whether intact or not."""
    try:
      names = os.listdir(self.directory)
    except OSError:
      return []
    return sorted(int(m[1]) for m in map(_NAME.fullmatch, names) if m)

  def save(
      self, step: int, state: Any, position: Mapping[str, Any],
      also: Callable[[], None] | None = None,
  ) -> None:
    """Copies the state to the host; the files are written in the background.

    The state may be donated or overwritten as soon as this returns. Waits for
    the save before, if that is still in flight. A step that has an intact
    checkpoint already is not written again.

    Args:
      step: the number of finished training steps.
      state: pytree of arrays and numbers; jax arrays with any sharding.
      position: what else is needed to go on (data position, seed), as JSON
        holds it; process 0's is taken.
      also: writes what else belongs to this step. Process 0 calls it in the
        background before the checkpoint takes its name, so that a kill never
        leaves the checkpoint without it.

    Raises:
      UserError: if this save or the one before could not be written.
    """
    if self._read_only:
      raise ValueError("these checkpoints were opened with read_only=True")
    self.wait()
    if self._is_intact(step):
      return
    arrays = _snapshot(_named(state))
    content = {
        "format": _FORMAT,
        "step": int(step),
        # A copy, for the caller goes on counting in its own; and an object that
        # JSON cannot hold fails here, not in the background.
        "position": json.loads(json.dumps(position)),
        "arrays": {name: _signature(a) for name, a in arrays.items()},
    }
    shared = jax.process_count() > 1
    try:
      self._make_folder(step)
      if shared:  # orbax copies and agrees with the others
        self._start(step, arrays)
    except Exception as error:  # orbax raises disk errors as any type
      self._abandon(step)
      raise self._explained(error, step) from error
    self._thread = threading.Thread(
        target=self._finish, name="checkpoint",
        args=(step, None if shared else arrays, content, also))
    self._thread.start()

  def wait(self) -> None:
    """Returns when no save is in flight.

    Raises:
      UserError: if that save failed; earlier checkpoints are as they were.
    """
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    error, self._error = self._error, None
    if error is not None:
      raise error

  def close(self) -> None:
    """Waits, and lets go of orbax's threads; raises what `wait` raises."""
    try:
      self.wait()
    finally:
      if self._writer is not None:
        self._writer.close()
        self._writer = None

  def latest(
      self, abstract_state: Any
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """Restores the newest checkpoint that is intact.

    Damaged ones are passed over with one warning that names each of them.

    Args:
      abstract_state: a tree like the one that was saved. Each leaf is a
        `jax.ShapeDtypeStruct` or an array; it says the sharding to restore to,
        on any number of devices. Without a sharding a leaf goes to the default
        device; numpy arrays and Python numbers are restored as such.

    Returns:
      Step, state and position; None if the folder has no checkpoint at all.

    Raises:
      UserError: if there are checkpoints and none is intact, or the newest
        intact one holds other arrays than `abstract_state`.
    """
    self.wait()
    step = self._agreed_step()
    if step is None:
      return None
    # Any later one was passed over, even if it was intact when it was saved.
    self._verified = {s for s in self._verified if s < step} | {step}
    folder = self._folder(step)
    manifest = _read_manifest(folder)
    wanted = _named(abstract_state)
    _check_same_arrays(manifest["arrays"], wanted, folder)
    restored = _restore(os.path.join(folder, _STATE), wanted)
    treedef = jax.tree.structure(abstract_state)
    state = jax.tree.unflatten(treedef, [restored[name] for name in wanted])
    return step, state, manifest["position"]

  def _folder(self, step: int) -> str:
    return os.path.join(self.directory, f"checkpoint_{step}")

  def _prepare(self) -> None:
    """Makes the folder, writes into it once, removes leftovers of kills."""
    try:
      os.makedirs(self.directory, exist_ok=True)
      with tempfile.TemporaryFile(dir=self.directory) as probe:
        probe.write(b"0")
      for name in os.listdir(self.directory):
        if _LEFTOVER.fullmatch(name):
          _remove(os.path.join(self.directory, name))
    except OSError as error:
      raise UserError(
          f"cannot write checkpoints into {self.directory!r}: "
          f"{why_not_written(error)}") from error

  def _prepare_writer(self) -> None:
    if self._writer is None:
      self._writer = _orbax_writer()

  def _is_intact(self, step: int) -> bool:
    return (os.path.lexists(self._folder(step))
            and damage(self._folder(step)) is None)

  def _make_folder(self, step: int) -> None:
    temporary = self._folder(step) + ".tmp"
    if jax.process_index() == 0:
      _remove(temporary)
      # Not makedirs: a folder that vanished under a run is an error to show,
      # for the earlier checkpoints are gone with it.
      os.mkdir(temporary)

  def _start(self, step: int, arrays: Mapping[str, Any]) -> None:
    """Hands the arrays to orbax; returns when they are on the host."""
    self._prepare_writer()
    self._writer.save(
        os.path.join(self._folder(step) + ".tmp", _STATE),
        args=_orbax_tree(arrays))

  def _finish(
      self, step: int, arrays: Mapping[str, Any] | None,
      content: dict[str, Any], also: Callable[[], None] | None,
  ) -> None:
    """The background half of a save; keeps its error for `wait`.

    Args:
      step: see `save`.
      arrays: on the host; None if orbax has them already.
      content: of the manifest.
      also: see `save`.
    """
    try:
      if arrays is not None:
        self._start(step, arrays)
      self._writer.wait_until_finished()
      if jax.process_index() == 0:
        if also is not None:
          also()
        self._seal(step, content)
    except Exception as error:  # orbax raises disk errors as any type
      self._abandon(step)
      self._error = self._explained(error, step)
    try:
      _barrier(f"prompt_tuning_checkpoint_{step}")
      if not os.path.exists(os.path.join(self._folder(step), _MANIFEST)):
        raise OSError("another process could not write its part")
      self._verified.add(step)
    except Exception as error:  # a lost process; the first error says more
      self._error = self._error or self._explained(error, step)

  def _seal(self, step: int, content: dict[str, Any]) -> None:
    """Puts the manifest in, makes all of it durable, gives it its name."""
    folder = self._folder(step)
    temporary = folder + ".tmp"
    content = content | {"files": _durable_files(temporary)}
    write_whole(os.path.join(temporary, _MANIFEST), _manifest_bytes(content))
    _discard(folder)  # Of this step a damaged one at most: see `save`.
    os.rename(temporary, folder)
    fsync_folder(self.directory)
    if self._keep is not None:
      self._remove_older(step)

  def _remove_older(self, newest: int) -> None:
    """Keeps the newest `keep` up to the one that was just written.

    Later steps than that are damaged ones that a resumed run will write again:
    counting them could push out the only good checkpoint.
    """
    older = [step for step in self.steps() if step < newest]
    for step in older[:max(0, len(older) - self._keep + 1)]:
      self._verified.discard(step)
      with contextlib.suppress(OSError):  # The new one stands all the same.
        _discard(self._folder(step))

  def _abandon(self, step: int) -> None:
    """Removes what a failed save left; a full disk needs the room."""
    if jax.process_index() == 0:
      folder = self._folder(step) + ".tmp"
      for _ in range(_REMOVALS):  # orbax's other threads may still write
        _remove(folder)
        if not os.path.lexists(folder):
          break
        time.sleep(0.1)

  def _explained(self, error: Exception, step: int) -> UserError:
    """The sentence for a failed save, which says what still stands."""
    good = [s for s in self.steps() if s in self._verified] or self.steps()
    stands = (f"the last good checkpoint stays at {self._folder(good[-1])!r}"
              if good else "this run has no checkpoint yet")
    return UserError(
        f"could not save checkpoint {step} into {self.directory!r}: "
        f"{_reason(error)}; {stands}")

  def _agreed_step(self) -> int | None:
    """The newest intact step, as process 0 sees it; None without any."""
    failure = None
    step = _NOTHING
    if jax.process_index() == 0:
      try:
        found = self._newest_intact()
        step = _NOTHING if found is None else found
      except UserError as error:
        failure, step = error, _NOTHING_GOOD
    if jax.process_count() > 1:
      step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if step == _NOTHING_GOOD:
      raise failure or UserError(
          f"process 0 found no intact checkpoint in {self.directory!r}: see "
          "its message")
    return None if step == _NOTHING else step

  def _newest_intact(self) -> int | None:
    """The newest step that verifies; warns of those passed over."""
    damaged = {}
    # Listed anew each time: a run that goes on beside an evaluation replaces
    # the folder that the evaluation has just found.
    while left := [step for step in self.steps() if step not in damaged]:
      step = left[-1]
      reason = damage(self._folder(step))
      if reason is None:
        newer = {s: why for s, why in damaged.items() if s > step}
        if newer:
          warnings.warn(
              f"going back to {self._folder(step)!r}, because newer "
              f"checkpoints are damaged: {self._listed(newer)}",
              RuntimeWarning, stacklevel=4)
        return step
      damaged[step] = reason
    if damaged:
      raise UserError(
          f"no checkpoint in {self.directory!r} is intact: "
          f"{self._listed(damaged)}; restore one from a copy, or remove these "
          "folders to start from the beginning")
    return None

  def _listed(self, damaged: Mapping[int, str]) -> str:
    return "; ".join(
        f"{self._folder(step)!r} ({why})" for step, why in damaged.items())


def damage(folder: str | os.PathLike) -> str | None:
  """Why a checkpoint folder is not what was written; None if it is intact."""
  try:
    manifest = _read_manifest(folder)
    present = _files(folder)
    listed = manifest["files"]
    for name in sorted(listed.keys() - present):
      return f"{name} is missing"
    for name in sorted(present - listed.keys()):
      return f"{name} is not in the manifest"
    for name in sorted(present):
      path = os.path.join(folder, name)
      size = os.path.getsize(path)
      if size != listed[name]["size"]:
        return f"{name} has {size} bytes instead of {listed[name]['size']}"
      if _sha256(path) != listed[name]["sha256"]:
        return f"the content of {name} has changed"
  except OSError as error:
    return f"{error.filename}: {error.strerror}"
  except _Damaged as error:
    return str(error)
  return None


def read(folder: str | os.PathLike) -> dict[str, np.ndarray]:
  """All arrays of one checkpoint of a run, by path, without its model.

  Raises:
    UserError: if it is damaged.
  """
  if why := damage(folder):
    raise UserError(
        f"{os.fspath(folder)!r} is damaged ({why}): take another checkpoint.")
  names = _read_manifest(folder)["arrays"]
  return _restore(
      os.path.join(os.path.abspath(folder), _STATE),
      dict.fromkeys(names, np.empty(0)))


def on_host(array: Any) -> np.ndarray:
  """An array on the host, gathered if other processes hold parts of it.

  On a CPU it may be the device's own buffer, and not a copy.
  """
  if (isinstance(array, jax.Array) and not array.is_fully_addressable
      and not array.is_fully_replicated):
    array = multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)


def trained(
    path: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """What a run has trained, from its newest intact checkpoint.

  Args:
    path: the run's folder, or one of its `checkpoint_N`.

  Returns:
    The trained parameters by path, and the position they were saved with.

  Raises:
    UserError: if there is no intact checkpoint.
  """
  path = os.path.abspath(path)
  folder = path
  if not os.path.exists(os.path.join(path, _MANIFEST)):
    names = os.listdir(path) if os.path.isdir(path) else []
    steps = sorted(int(found[1]) for found in map(_NAME.fullmatch, names)
                   if found)
    folders = [os.path.join(path, f"checkpoint_{step}") for step in steps]
    if not folders:
      raise UserError(
          f"There is no checkpoint_N of a run in {path}: give the MODEL_DIR of "
          "a training, or one of its checkpoints.")
    folder = next(
        (one for one in reversed(folders) if damage(one) is None), folders[-1])
  arrays = read(folder)  # says so if it is damaged
  prefix = "trainable/"
  return ({name.removeprefix(prefix): array for name, array in arrays.items()
           if name.startswith(prefix)},
          _read_manifest(folder)["position"])


def save_numpy(
    directory: str | os.PathLike, step: int, arrays: Mapping[str, Any]
) -> str:
  """Writes arrays where the original's users look for their prompts.

  `{directory}/numpy_checkpoints/checkpoint_{step}/encoder.prompt.prompt.prompt`
  for the path `encoder/prompt/prompt/prompt`: `.npy` content, no suffix,
  float32. A folder of that step that is there already is kept, with `.backup-`
  and the unix time after its name. Called by all processes; process 0 writes.

  Args:
    directory: the run's folder.
    step: the number of finished training steps.
    arrays: array by parameter path.

  Returns:
    The folder of the arrays.

  Raises:
    UserError: if it cannot be written.
  """
  values = {path: on_host(array) for path, array in arrays.items()}
  parent = os.path.join(os.path.abspath(directory), "numpy_checkpoints")
  folder = os.path.join(parent, f"checkpoint_{step}")
  if jax.process_index() != 0:
    return folder
  temporary = folder + ".tmp"
  try:
    _remove(temporary)
    os.makedirs(temporary)
    for path, value in values.items():
      npy.write(os.path.join(temporary, numpy_name(path)), value)
    if os.path.lexists(folder):
      os.rename(folder, _free_backup_name(folder))
    os.rename(temporary, folder)
    fsync_folder(parent)
  except OSError as error:
    raise UserError(
        f"cannot write the arrays of step {step} into {folder!r}: "
        f"{why_not_written(error)}") from error
  finally:
    _remove(temporary)
  return folder


def numpy_name(path: str) -> str:
  """The name of a parameter's file among `save_numpy`'s."""
  return path.replace("/", ".")


class _Damaged(Exception):
  """A manifest that is not as it was written, and why."""


# --- Trees and arrays ---


def _named(tree: Any) -> dict[str, Any]:
  """Leaves by path: {"optimizer/0/mu/prompt": leaf}, in the tree's order.

  By name, and not in the tree's own structure, so that a file does not depend
  on the classes of an optimizer, and differences can be told in words.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  named = {
      jax.tree_util.keystr(path, simple=True, separator="/"): leaf
      for path, leaf in leaves
  }
  if len(named) != len(leaves):
    counts = collections.Counter(
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in leaves)
    raise ValueError(
        f"two leaves of the state have one path: {counts.most_common(1)}")
  return named


def _snapshot(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Arrays as orbax takes them, which the caller may overwrite.

  One process copies them to the host, and leaves orbax to the background: to
  hand them over, orbax starts eight threads and waits for each, 10 ms on an
  idle machine and 60 ms on a busy one. Several processes hold parts of an
  array, so orbax has to see it as it is; it copies before it returns.
  """
  if jax.process_count() == 1:
    return {name: np.array(leaf)
            for name, leaf in jax.device_get(dict(arrays)).items()}
  # An array that lives on one process's devices is the same on all of them.
  return {
      name: leaf if isinstance(leaf, jax.Array)
      and not leaf.is_fully_addressable else np.asarray(leaf)
      for name, leaf in arrays.items()}


def _signature(leaf: Any) -> list:
  """[shape, dtype] of an array or a Python number, as JSON holds it."""
  if not hasattr(leaf, "dtype"):
    leaf = np.asarray(leaf)
  return [list(leaf.shape), str(leaf.dtype)]


def _check_same_arrays(
    stored: Mapping[str, list], wanted: Mapping[str, Any], folder: str
) -> None:
  """Refuses a checkpoint of another model, method or optimizer."""
  wanted = {name: _signature(leaf) for name, leaf in wanted.items()}
  for name in wanted:
    if name in stored and stored[name] != wanted[name]:
      raise UserError(
          f"{folder!r} holds {name!r} as {_described(stored[name])}, and this "
          f"run has it as {_described(wanted[name])}: go on with the settings "
          "of that run (prompt length, model size, optimizer), or train into "
          "another folder")
  missing = sorted(wanted.keys() - stored.keys())
  extra = sorted(stored.keys() - wanted.keys())
  if missing or extra:
    raise UserError(
        f"{folder!r} is of a run with other parameters or another optimizer: "
        f"it lacks {_examples(missing, wanted)}, and has "
        f"{_examples(extra, stored)} that this run does not; go on with the "
        "settings of that run, or train into another folder")


def _described(signature: list) -> str:
  return f"{tuple(signature[0])} {signature[1]}"


def _examples(names: list[str], signatures: Mapping[str, list]) -> str:
  """The first names with their shapes: "'a' (2, 3) float32 and 4 others"."""
  if not names:
    return "nothing"
  first = f"{names[0]!r} {_described(signatures[names[0]])}"
  return first + (f" and {len(names) - 1} others" if len(names) > 1 else "")


def _restore(folder: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
  """Reads the arrays, each to the sharding of its wanted leaf."""
  import orbax.checkpoint as ocp  # 0.8 s

  def argument(leaf):
    if getattr(leaf, "sharding", None) is None:
      return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array, sharding=leaf.sharding,
        global_shape=leaf.shape, dtype=leaf.dtype)

  def as_wanted(value, leaf):
    if isinstance(leaf, (bool, int, float, complex)):
      return type(leaf)(value)
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
      return jnp.asarray(value)
    return value

  with contextlib.closing(
      ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
    values = reader.restore(folder, args=ocp.args.PyTreeRestore(
        item=dict.fromkeys(wanted, 0),
        restore_args={name: argument(leaf) for name, leaf in wanted.items()}))
  return {name: as_wanted(values[name], leaf) for name, leaf in wanted.items()}


# --- orbax ---


def _orbax_writer():
  """orbax's asynchronous checkpointer of one tree in one folder."""
  import orbax.checkpoint as ocp  # 0.8 s: only a run that saves pays for it

  # Whatever it logs as an error it raises too: one sentence is enough.
  logging.getLogger("absl").addFilter(_is_no_orbax_error)
  return ocp.AsyncCheckpointer(
      ocp.PyTreeCheckpointHandler(),
      # A folder that cannot be made is one error if it is made at once, and a
      # time-out in each of many threads if it is made in the background.
      async_options=ocp.AsyncOptions(
          timeout_secs=_BARRIER_SECONDS,
          create_directories_asynchronously=False))


def _orbax_tree(arrays: Mapping[str, Any]):
  import orbax.checkpoint as ocp  # 0.8 s

  return ocp.args.PyTreeSave(dict(arrays))


def _is_no_orbax_error(record: logging.LogRecord) -> bool:
  return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _barrier(key: str) -> None:
  """Waits for all processes; safe beside the main thread's collectives."""
  if jax.process_count() > 1:
    import orbax.checkpoint as ocp  # 0.8 s

    ocp.multihost.get_barrier_sync_fn()(
        key=key, timeout_ms=1000 * _BARRIER_SECONDS)


def _reason(error: BaseException) -> str:
  """Why the disk refused, from an OSError or from tensorstore's message."""
  seen = error
  while seen is not None and not isinstance(seen, OSError):
    seen = seen.__cause__ or seen.__context__
  if isinstance(seen, OSError) and seen.errno:
    return why_not_written(seen)
  code = re.search(r"os_error_code='(\d+)'", str(error))
  if code:
    return why_not_written(OSError(int(code[1]), os.strerror(int(code[1]))))
  return str(error).split("\n")[0] or type(error).__name__


# --- Files ---


def _files(folder: str | os.PathLike) -> set[str]:
  """Relative names of all files but the manifest.

  Hidden files are not ours: file managers and network file systems drop them
  anywhere, and a checkpoint must not be lost for it.
  """
  found = set()
  for parent, _, names in os.walk(folder):
    inside = os.path.relpath(parent, folder)
    found |= {os.path.normpath(os.path.join(inside, name))
              for name in names if not name.startswith(".")}
  return found - {_MANIFEST}


def _durable_files(folder: str) -> dict[str, dict[str, Any]]:
  """Brings every file and folder inside to the disk: size and sha256 by name.

  The checksum is of what is read back, as a restore will read it.
  """
  files = {}
  for name in sorted(_files(folder)):
    path = os.path.join(folder, name)
    with open(path, "rb") as file:
      os.fsync(file.fileno())
    files[name] = {"size": os.path.getsize(path), "sha256": _sha256(path)}
  for parent, _, _ in os.walk(folder):
    fsync_folder(parent)
  return files


def _sha256(path: str) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_bytes(content: dict[str, Any]) -> bytes:
  """The manifest with its own checksum, in the only form that is accepted."""
  document = {
      "content": content,
      "sha256": hashlib.sha256(_canonical(content)).hexdigest(),
  }
  return _canonical(document)


def _canonical(content: Any) -> bytes:
  return json.dumps(content, indent=1, sort_keys=True).encode()


def _read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
  """The content of an undamaged manifest.

  Raises:
    _Damaged: with the reason.
  """
  path = os.path.join(folder, _MANIFEST)
  if not os.path.isdir(folder):
    raise _Damaged("it is not a folder")
  try:
    with open(path, "rb") as file:
      text = file.read()
  except FileNotFoundError:
    raise _Damaged(f"{_MANIFEST} is missing") from None
  try:
    content = json.loads(text)["content"]
    # Written again, it must be the same: a bit of white space counts too.
    if text != _manifest_bytes(content):
      raise _Damaged(f"the content of {_MANIFEST} has changed")
  except (ValueError, TypeError, KeyError, RecursionError):
    raise _Damaged(f"{_MANIFEST} is not what was written") from None
  if content["format"] != _FORMAT:
    raise _Damaged(f"it is in format {content['format']}, of a later release")
  return content


def _remove(path: str) -> None:
  """Removes a file or folder if it is there; what stays is a leftover."""
  if os.path.isdir(path) and not os.path.islink(path):
    shutil.rmtree(path, ignore_errors=True)
  else:
    with contextlib.suppress(OSError):
      os.unlink(path)


def _discard(folder: str) -> None:
  """Removes a checkpoint; a kill on the way leaves no half of one behind."""
  if os.path.lexists(folder):
    doomed = folder + ".discarded.tmp"
    _remove(doomed)
    os.rename(folder, doomed)
    _remove(doomed)


def _free_backup_name(folder: str) -> str:
  """`{folder}.backup-{unix time}`, or the next second that is not taken."""
  seconds = int(time.time())
  while os.path.lexists(f"{folder}.backup-{seconds}"):
    seconds += 1
  return f"{folder}.backup-{seconds}"
