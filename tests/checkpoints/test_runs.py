"""Run checkpoints: bit-exact, whole or absent, and damage is always noticed.

The oracle of every round trip is the bytes of the arrays that were saved.
"""

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from prompt_tuning.checkpoints import runs
from prompt_tuning.errors import UserError
from prompt_tuning.formats import npy

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = {"cwd": ROOT, "env": os.environ | {
    "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}}
# The other writes of orbax that fail on a full disk find its loop closed.
LOOP_CLOSED = "ignore::pytest.PytestUnraisableExceptionWarning"


def make_state(step: int, length: int = 5, width: int = 8, optimizer=None):
  """A trainable tree with its optimizer, all of it unlike at each step."""
  rng = np.random.default_rng(step)
  prompt = rng.normal(size=(length, width)).astype(np.float32)
  trainable = {"encoder": {"prompt": {"prompt": {"prompt": prompt}}},
               "head": prompt[0].astype("bfloat16")}
  trainable = jax.tree.map(jax.device_put, trainable)
  state = (optimizer or optax.adamw(0.1)).init(trainable)
  state = jax.tree.map(
      lambda x: jax.device_put(rng.normal(size=x.shape).astype(x.dtype)), state)
  return {"trainable": trainable, "optimizer": state, "step": step}


def position(step: int):
  return {"data": {"index": step, "files": ["a", "b"]}, "seed": 42}


def abstract(state, sharding=None):
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
      if isinstance(x, jax.Array) else x, state)


def as_bytes(state):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def assert_is(found, step):
  assert found is not None and found[0] == step
  want = make_state(step)
  assert jax.tree.structure(found[1]) == jax.tree.structure(want)
  assert as_bytes(found[1]) == as_bytes(want)
  assert found[2] == position(step)


@contextlib.contextmanager
def saved(directory, *steps, **kwargs):
  with runs.RunCheckpoints(directory, **kwargs) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step), position(step))
    checkpoints.wait()
    yield checkpoints


def latest(directory):
  return runs.RunCheckpoints(directory, read_only=True).latest(
      abstract(make_state(0)))


@pytest.fixture(name="pair", scope="module")
def fixture_pair(tmp_path_factory):
  """A folder with intact checkpoints 3 and 6; tests work on copies."""
  directory = tmp_path_factory.mktemp("pair") / "run"
  with saved(directory, 3, 6, keep=None):
    return directory


@pytest.fixture(name="run")
def fixture_run(pair, tmp_path):
  return pathlib.Path(shutil.copytree(pair, tmp_path / "run"))


# --- What is saved comes back ---


def test_round_trip_is_bit_exact(tmp_path):
  with saved(tmp_path / "run", 7):
    pass
  assert_is(latest(tmp_path / "run"), 7)
  assert os.listdir(tmp_path / "run") == ["checkpoint_7"]


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path):
  assert latest(tmp_path) is None
  assert latest(tmp_path / "absent") is None
  assert not (tmp_path / "absent").exists()


def test_python_numbers_and_numpy_arrays_stay_what_they_are(tmp_path):
  state = {"step": 3, "loss": 0.1, "flag": True, "count": np.arange(3)}
  with runs.RunCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(3, state, {})
    _, found, _ = checkpoints.latest(state)
  assert found["step"] == 3 and type(found["step"]) is int
  assert found["loss"] == 0.1 and found["flag"] is True
  np.testing.assert_array_equal(found["count"], state["count"])
  assert found["count"].dtype == np.int64


def test_buffers_may_be_donated_and_position_changed_after_save(tmp_path):
  state, where = make_state(4), position(4)
  overwrite = jax.jit(
      lambda tree: jax.tree.map(lambda x: x * 0 + 1, tree), donate_argnums=0)
  with runs.RunCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(4, state, where)
    where["data"]["index"] = -1
    arrays = {k: state[k] for k in ("trainable", "optimizer")}
    overwritten = jax.block_until_ready(overwrite(arrays))
  assert as_bytes(overwritten) != as_bytes(make_state(4))
  assert_is(latest(tmp_path), 4)


def mesh_sharding(devices: int, *spec):
  rows = 2 if devices > 1 else 1
  mesh = Mesh(np.array(jax.devices()[:devices]).reshape(rows, -1), ("d", "m"))
  return NamedSharding(mesh, PartitionSpec(*spec))


@pytest.mark.parametrize("devices_saved", [1, 8])
@pytest.mark.parametrize("devices_restored", [1, 2, 8])
def test_restores_to_another_mesh(tmp_path, devices_saved, devices_restored):
  values = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
  state = {
      "split": jax.device_put(values, mesh_sharding(devices_saved, "d", "m")),
      "whole": jax.device_put(values, mesh_sharding(devices_saved))}
  wanted = {
      "split": jax.ShapeDtypeStruct(
          (16, 32), np.float32,
          sharding=mesh_sharding(devices_restored, "m", "d")),
      "whole": jax.ShapeDtypeStruct(
          (16, 32), np.float32, sharding=mesh_sharding(devices_restored, "m"))}
  with runs.RunCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
    _, found, _ = checkpoints.latest(wanted)
  for name, array in found.items():
    assert array.sharding.is_equivalent_to(wanted[name].sharding, 2)
    np.testing.assert_array_equal(array, values)


def test_a_prompt_of_base_size_takes_less_than_three_megabytes(tmp_path):
  """[100, 768] in float32 is 0.3 MB; with Adam's two moments 0.9 MB."""
  state = make_state(1, 100, 768)
  with runs.RunCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, position(1))
  files = [p for p in tmp_path.rglob("*") if p.is_file()]
  size = sum(p.stat().st_size for p in files)
  arrays = sum(x.nbytes for x in jax.tree.leaves(state) if hasattr(x, "nbytes"))
  assert size <= arrays + 16_000 <= 3_000_000


def test_importing_does_not_import_orbax():
  code = ("import prompt_tuning.checkpoints.runs, sys;"
          "sys.exit('orbax.checkpoint' in sys.modules)")
  subprocess.run([sys.executable, "-c", code], check=True, **RUN)


# --- Which checkpoints stay ---


@pytest.mark.parametrize(
    "keep, left", [(1, [9]), (2, [6, 9]), (None, [3, 6, 9])])
def test_keeps_the_newest(tmp_path, keep, left):
  with saved(tmp_path, 3, 6, 9, keep=keep) as checkpoints:
    assert checkpoints.steps() == left
  assert sorted(os.listdir(tmp_path)) == [f"checkpoint_{s}" for s in left]


def test_keep_must_be_positive(tmp_path):
  with pytest.raises(UserError, match="keep=0"):
    runs.RunCheckpoints(tmp_path, keep=0)


def test_a_damaged_later_step_does_not_push_out_a_good_one(run):
  flip_a_bit(run / "checkpoint_6", b"manifest.json")
  with saved(run, 4, keep=1) as checkpoints:
    assert checkpoints.steps() == [4, 6]
  with pytest.warns(RuntimeWarning, match="checkpoint_6"):
    assert_is(latest(run), 4)


def test_a_damaged_step_is_replaced_and_an_intact_one_is_not(run):
  flip_a_bit(run / "checkpoint_6", b"manifest.json")
  before = (run / "checkpoint_3").stat().st_ino
  with saved(run, 3, 6, keep=None):
    assert_is(latest(run), 6)
  assert (run / "checkpoint_3").stat().st_ino == before


def test_leftovers_of_killed_runs_are_removed_at_the_start(run):
  for name in ("checkpoint_9.tmp", "checkpoint_2.discarded.tmp"):
    (run / name / "state").mkdir(parents=True)
  (run / "checkpoint_notes").mkdir()
  runs.RunCheckpoints(run, read_only=True)
  assert (run / "checkpoint_9.tmp").exists()
  runs.RunCheckpoints(run)
  assert sorted(os.listdir(run)) == [
      "checkpoint_3", "checkpoint_6", "checkpoint_notes"]


def test_read_only_refuses_to_save(run):
  with pytest.raises(ValueError, match="read_only"):
    runs.RunCheckpoints(run, read_only=True).save(9, {}, {})


# --- Damage ---


def data_file(folder):
  """The largest file: the one with the arrays."""
  return max((p for p in folder.rglob("*") if p.is_file()),
             key=lambda p: p.stat().st_size)


def flip_a_bit(folder, name=None):
  path = folder / os.fsdecode(name) if name else data_file(folder)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def cut(path):
  os.truncate(path, path.stat().st_size // 2)


def edit_manifest(change):
  """Changes the manifest and signs it again, as only an attacker would."""
  def edit(folder):
    path = folder / "manifest.json"
    content = json.loads(path.read_text())["content"]
    change(content)
    path.write_bytes(runs._manifest_bytes(content))
  return edit


def in_place_of(folder, make):
  shutil.rmtree(folder)
  make(folder)


DAMAGES = {
    "data cut": lambda f: cut(data_file(f)),
    "data emptied": lambda f: os.truncate(data_file(f), 0),
    "data deleted": lambda f: data_file(f).unlink(),
    "data bit flipped": flip_a_bit,
    "data longer": lambda f: data_file(f).open("ab").write(b"\0"),
    "all data deleted": lambda f: shutil.rmtree(f / "state"),
    "manifest cut": lambda f: cut(f / "manifest.json"),
    "manifest emptied": lambda f: os.truncate(f / "manifest.json", 0),
    "manifest deleted": lambda f: (f / "manifest.json").unlink(),
    "manifest is a folder": lambda f: in_place_of(
        f, lambda f: (f / "manifest.json").mkdir(parents=True)),
    "manifest unsigned": lambda f: (f / "manifest.json").write_text("{}"),
    "manifest nested": lambda f: (f / "manifest.json").write_text("[" * 99999),
    "manifest names a missing file": edit_manifest(
        lambda c: c["files"].update({"state/x": {"size": 0, "sha256": ""}})),
    "manifest has a wrong sum": edit_manifest(
        lambda c: next(iter(c["files"].values())).update(sha256="0" * 64)),
    "manifest of a later release": edit_manifest(lambda c: c.update(format=2)),
    "metadata is garbage": lambda f: (
        f / "state" / "_METADATA").write_bytes(b"\xff" * 99),
    "metadata deleted": lambda f: (f / "state" / "_METADATA").unlink(),
    "index cut": lambda f: cut(f / "state" / "manifest.ocdbt"),
    "unknown file": lambda f: (f / "state" / "more").touch(),
    "empty folder": lambda f: in_place_of(f, lambda f: f.mkdir()),
    "file": lambda f: in_place_of(f, lambda f: f.touch()),
    "broken link": lambda f: in_place_of(
        f, lambda f: f.symlink_to(f.parent / "absent")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_falls_back_with_one_warning(run, name):
  DAMAGES[name](run / "checkpoint_6")
  assert runs.damage(run / "checkpoint_6")
  with pytest.warns(RuntimeWarning, match="checkpoint_6") as caught:
    assert_is(latest(run), 3)
  assert len(caught) == 1
  assert "\n" not in str(caught[0].message)
  assert caught[0].filename == __file__


def test_every_kind_of_file_cut_is_noticed(pair, tmp_path):
  names = [p.relative_to(pair / "checkpoint_6")
           for p in (pair / "checkpoint_6").rglob("*") if p.is_file()]
  assert len(names) > 5
  for i, name in enumerate(names):
    folder = shutil.copytree(pair / "checkpoint_6", tmp_path / str(i))
    cut(folder / name)
    assert name.name in runs.damage(folder)


def test_all_flipped_bits_are_noticed(pair, tmp_path):
  """30 bits in every file, over 300 in all; afterwards it is intact again."""
  rng = np.random.default_rng(0)
  folder = shutil.copytree(pair / "checkpoint_6", tmp_path / "checkpoint_6")
  flips = 0
  for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    content = path.read_bytes()
    for bit in rng.choice(8 * len(content), 30):
      damaged = bytearray(content)
      damaged[bit // 8] ^= 1 << (bit % 8)
      path.write_bytes(damaged)
      assert runs.damage(folder), f"bit {bit} of {path.name}"
      flips += 1
    path.write_bytes(content)
  assert flips >= 300
  assert runs.damage(folder) is None


def test_hidden_files_of_file_managers_are_no_damage(run):
  (run / "checkpoint_6" / "state" / ".DS_Store").touch()
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert_is(latest(run), 6)


def test_a_folder_replaced_while_it_is_looked_at_is_no_damage(
    run, monkeypatch):
  """An evaluation beside a training run, which saves 9 and removes 6."""
  damage = runs.damage

  def overtaken(folder):
    if folder.endswith("_6"):
      shutil.rmtree(run)
      with saved(run, 9):
        pass
    return damage(folder)

  monkeypatch.setattr(runs, "damage", overtaken)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert_is(latest(run), 9)


def test_nothing_intact_says_what_to_do(run):
  for step in (3, 6):
    flip_a_bit(run / f"checkpoint_{step}")
  with pytest.raises(
      UserError, match="checkpoint_6.*checkpoint_3.*remove these folders"):
    latest(run)


# --- Another run's checkpoint ---


def test_other_prompt_length_is_refused_with_both_shapes(run):
  with pytest.raises(UserError, match=(
      r"checkpoint_6.*prompt.*\(5, 8\) float32.*\(100, 8\) float32")):
    runs.RunCheckpoints(run).latest(abstract(make_state(0, length=100)))


def test_other_optimizer_is_refused_with_names(run):
  other = make_state(0, optimizer=optax.sgd(0.1))
  with pytest.raises(UserError, match=r"lacks nothing.*has.*optimizer/0/"):
    runs.RunCheckpoints(run).latest(abstract(other))
  more = make_state(0) | {"average": np.zeros((2, 3), np.float32)}
  with pytest.raises(UserError, match=r"lacks 'average' \(2, 3\) float32"):
    runs.RunCheckpoints(run).latest(abstract(more))


def test_other_type_is_refused(run):
  state = make_state(0)
  state["trainable"]["head"] = state["trainable"]["head"].astype(np.float32)
  with pytest.raises(UserError, match=r"bfloat16.*float32"):
    runs.RunCheckpoints(run).latest(abstract(state))


def test_two_leaves_of_one_name_are_refused(tmp_path):
  with runs.RunCheckpoints(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match="one path"):
      checkpoints.save(1, {"a/b": 1, "a": {"b": 2}}, {})
    with pytest.raises(TypeError):
      checkpoints.save(1, {"a": 1}, {"iterator": object()})
  assert not os.listdir(tmp_path)


# --- Disks ---


@pytest.fixture(name="small_disk")
def fixture_small_disk(tmp_path):
  """One megabyte of memory as a disk, where the tests may mount one."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("tests may not mount a file system here")
  yield disk
  subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.filterwarnings(LOOP_CLOSED)
def test_full_disk_keeps_the_last_good_checkpoint(small_disk, capfd):
  with saved(small_disk, 3) as checkpoints:
    checkpoints.save(6, make_state(6, 1000, 1000), position(6))
    with pytest.raises(UserError, match="disk is full.*checkpoint_3'") as error:
      checkpoints.wait()
    assert "\n" not in str(error.value)
    assert os.listdir(small_disk) == ["checkpoint_3"]
    checkpoints.wait()  # Told once.
    # With room again the run goes on.
    checkpoints.save(9, make_state(9), position(9))
  assert_is(latest(small_disk), 9)
  assert "Traceback" not in capfd.readouterr().err


@pytest.mark.filterwarnings(LOOP_CLOSED)
def test_full_disk_is_told_by_the_next_save(small_disk):
  with runs.RunCheckpoints(small_disk) as checkpoints:
    checkpoints.save(3, make_state(3, 1000, 1000), position(3))
    with pytest.raises(UserError, match="disk is full.*no checkpoint yet"):
      checkpoints.save(6, make_state(6), position(6))
    assert not os.listdir(small_disk)


@pytest.mark.parametrize("error, reason", [
    (OSError(122, "Disk quota exceeded"), "quota"),
    (ValueError("Failed writing: [os_error_code='28']"), "disk is full"),
    (ValueError("first line\nsecond"), "^first line$"),
    (RuntimeError(), "RuntimeError")])
def test_reasons_are_told_in_words(error, reason):
  assert re.search(reason, runs._reason(error))


def test_failure_while_sealing_keeps_the_last_good_one(tmp_path, monkeypatch):
  """The disk fills after the arrays, at the manifest."""
  with saved(tmp_path, 3) as checkpoints:
    with monkeypatch.context() as patch:
      def full(descriptor):
        raise OSError(28, "No space left on device")
      patch.setattr(os, "fsync", full)
      checkpoints.save(6, make_state(6), position(6))
      with pytest.raises(UserError, match="disk is full.*checkpoint_3'"):
        checkpoints.wait()
    assert os.listdir(tmp_path) == ["checkpoint_3"]
    checkpoints.save(6, make_state(6), position(6))
  assert_is(latest(tmp_path), 6)


def test_folder_that_cannot_be_written_is_told_at_the_start(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="file/run.*a part of that path"):
    runs.RunCheckpoints(tmp_path / "file" / "run")
  with pytest.raises(UserError, match="cannot write checkpoints into"):
    runs.RunCheckpoints("/proc/run")


def test_folder_that_vanished_is_told(tmp_path):
  with saved(tmp_path / "run", 3) as checkpoints:
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match="its folder is gone"):
      checkpoints.save(6, make_state(6), position(6))
    (tmp_path / "run").mkdir()
    checkpoints.save(6, make_state(6), position(6))
  assert_is(latest(tmp_path / "run"), 6)


# --- Kills and many processes ---

# Forks after the slow imports and before any thread, so that a kill is cheap.
# Every child goes on where the one before was killed, and checks what it finds.
KILLED_RUNS = """
import os, random, signal, sys, time, warnings
import numpy as np
import jax
import orbax.checkpoint
from prompt_tuning.checkpoints import runs

def make(step):
  values = np.random.default_rng(step).normal(size=(100, 64))
  return {"prompt": values.astype(np.float32), "step": step}

def run(folder, report):
  warnings.simplefilter("error")
  with runs.RunCheckpoints(folder, keep=2) as checkpoints:
    assert not [n for n in os.listdir(folder) if n.endswith(".tmp")]
    found = checkpoints.latest(make(0))
    step = 0
    if found:
      step, state, position = found
      assert position == {"index": step} and state["step"] == step
      assert state["prompt"].tobytes() == make(step)["prompt"].tobytes()
    checkpoints.save(step + 1, make(step + 1), {"index": step + 1})
    checkpoints.wait()
    os.write(report, b"%d %d\\n" % (step, step + 1))
    for step in range(step + 2, 10**9):
      checkpoints.save(step, make(step), {"index": step})

folder, rounds = sys.argv[1], int(sys.argv[2])
random.seed(0)
read, report = os.pipe()
for _ in range(rounds):
  child = os.fork()
  if not child:
    try:
      run(folder, report)
    except BaseException as error:
      print(repr(error), file=sys.stderr, flush=True)
    os._exit(1)
  started = os.read(read, 20)
  time.sleep(random.uniform(0, 0.15))
  if started:
    os.kill(child, signal.SIGKILL)
  if os.waitpid(child, 0)[1] != signal.SIGKILL:
    sys.exit("a run failed")
  print(started.decode())
"""


def test_kill_at_any_moment_loses_nothing_that_was_saved(tmp_path):
  """Saves without a pause, killed 12 times at random."""
  process = subprocess.run(
      [sys.executable, "-c", KILLED_RUNS, str(tmp_path), "12"],
      capture_output=True, text=True, timeout=60, **RUN)
  assert process.returncode == 0, process.stderr
  rounds = [tuple(map(int, line.split()))
            for line in process.stdout.splitlines() if line]
  assert len(rounds) == 12 and rounds[0] == (0, 1)
  for (_, saved_before), (resumed_at, _) in itertools.pairwise(rounds):
    assert resumed_at >= saved_before
  wanted = {"prompt": np.zeros((100, 64), np.float32), "step": 0}
  step, state, position = runs.RunCheckpoints(tmp_path).latest(wanted)
  assert step >= rounds[-1][1] and position == {"index": step}
  want = np.random.default_rng(step).normal(size=(100, 64)).astype(np.float32)
  np.testing.assert_array_equal(state["prompt"], want)


class Killed(BaseException):
  """Passes every handler of errors, as a kill does."""


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_kill_before_any_step_of_sealing_leaves_a_whole_checkpoint(
    run, monkeypatch):
  """In turn before each fsync, rename, replacement: step 6 or 9, no warning."""
  calls = 0

  def until_killed(function, last):
    def counted(*args, **kwargs):
      nonlocal calls
      if threading.current_thread().name == "checkpoint":
        calls += 1
        if calls > last:
          raise Killed
      return function(*args, **kwargs)
    return counted

  found = []
  for last in itertools.count():
    calls = 0
    shutil.rmtree(run / "checkpoint_9", ignore_errors=True)
    checkpoints = runs.RunCheckpoints(run, keep=None)
    with monkeypatch.context() as patch:
      for name in ("fsync", "rename", "replace"):
        patch.setattr(os, name, until_killed(getattr(os, name), last))
      checkpoints.save(9, make_state(9), position(9))
      checkpoints._thread.join()
    checkpoints.close()
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      found.append(latest(run)[0])
      assert_is(latest(run), found[-1])
    if calls <= last:
      break
  assert len(found) > 15 and found[0] == 6 and found[-1] == 9
  # Not sorted to the letter: orbax's number of files varies by one or two.
  assert set(found) == {6, 9}


TWO_PROCESSES = """
import sys
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:" + port, 2, process)
from prompt_tuning.checkpoints import runs
from prompt_tuning.errors import UserError
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("d", "m"))
split = NamedSharding(mesh, PartitionSpec("d", "m"))
whole = NamedSharding(mesh, PartitionSpec())
def make(step):
  values = np.random.default_rng(step).normal(size=(8, 6)).astype(np.float32)
  put = lambda s: jax.make_array_from_callback((8, 6), s, lambda i: values[i])
  return {"split": put(split), "whole": put(whole), "step": step}
with runs.RunCheckpoints(folder, keep=2) as checkpoints:
  for step in (1, 2, 3):
    checkpoints.save(step, make(step), {"index": step})
  checkpoints.wait()
  if process == 0:
    open(folder + "/checkpoint_3/state/_METADATA", "w").close()
  runs.save_numpy(folder, 3, {"a/split": make(3)["split"],
                              "a/whole": make(3)["whole"]})
  runs._barrier("damaged")
  want = make(2)
  step, state, position = checkpoints.latest(want)
  assert step == 2 and position == {"index": 2} and state["step"] == 2
  for name in ("split", "whole"):
    assert state[name].sharding == want[name].sharding
    for got, shard in zip(state[name].addressable_shards,
                          want[name].addressable_shards):
      np.testing.assert_array_equal(got.data, shard.data)
  # A failure of process 0 is told on both.
  runs._durable_files = lambda folder: [][0]
  checkpoints.save(4, make(4), {})
  try:
    checkpoints.wait()
    raise SystemExit("no error")
  except UserError as error:
    assert "checkpoint_2" in str(error), error
"""


@pytest.mark.slow
def test_two_processes_save_and_go_back_together(tmp_path):
  """2 processes of 2 devices each over loopback; restored here on 1 and 4."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  settings = RUN | {"env": RUN["env"] | {
      "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}}
  processes = [
      subprocess.Popen(
          [sys.executable, "-c", TWO_PROCESSES, str(i), str(port),
           str(tmp_path)], stderr=subprocess.PIPE, text=True, **settings)
      for i in range(2)]
  try:
    errors = [process.communicate(timeout=60)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [p.returncode for p in processes] == [0, 0], errors
  values = np.random.default_rng(2).normal(size=(8, 6)).astype(np.float32)
  for devices in (1, 4):
    sharding = mesh_sharding(devices, "m", "d")
    wanted = jax.ShapeDtypeStruct((8, 6), np.float32, sharding=sharding)
    with pytest.warns(RuntimeWarning, match="checkpoint_3"):
      _, state, _ = runs.RunCheckpoints(tmp_path).latest(
          {"split": wanted, "whole": wanted, "step": 0})
    np.testing.assert_array_equal(state["split"], values)
    np.testing.assert_array_equal(state["whole"], values)
  folder = tmp_path / "numpy_checkpoints" / "checkpoint_3"
  values = np.random.default_rng(3).normal(size=(8, 6)).astype(np.float32)
  for name in ("a.split", "a.whole"):
    np.testing.assert_array_equal(npy.read(folder / name), values)


# --- numpy_checkpoints ---


def test_numpy_checkpoint_has_the_names_of_the_original(tmp_path):
  prompt = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
  arrays = {"encoder/prompt/prompt/prompt": jax.device_put(prompt)}
  folder = runs.save_numpy(tmp_path, 1_100_000, arrays)
  files = [p for p in tmp_path.rglob("*") if p.is_file()]
  assert [str(p.relative_to(tmp_path)) for p in files] == [
      "numpy_checkpoints/checkpoint_1100000/encoder.prompt.prompt.prompt"]
  assert files[0].parent == pathlib.Path(folder)
  np.testing.assert_array_equal(np.load(files[0]), prompt)


def test_numpy_checkpoint_keeps_what_was_there(tmp_path):
  for value in range(3):  # Within one second: no backup replaces another.
    runs.save_numpy(tmp_path, 5, {"a/b": np.full((2, 2), value, np.float32)})
  parent = tmp_path / "numpy_checkpoints"
  names = sorted(os.listdir(parent))
  assert names[0] == "checkpoint_5" and len(names) == 3
  seconds = [int(n.removeprefix("checkpoint_5.backup-")) for n in names[1:]]
  assert all(abs(s - time.time()) < 60 for s in seconds)
  assert [npy.read(parent / n / "a.b")[0, 0] for n in names] == [2, 0, 1]


def test_numpy_checkpoint_is_whole_or_absent(tmp_path):
  good, bad = np.ones((2, 2)), np.full((2, 2), np.nan)
  with pytest.raises(UserError, match="NaN"):
    runs.save_numpy(tmp_path, 5, {"a": good, "b": bad})
  assert not os.listdir(tmp_path / "numpy_checkpoints")
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="a part of that path is a file"):
    runs.save_numpy(tmp_path / "file", 5, {"a": good})


# --- What a step waits for ---


@pytest.fixture
def slow_disk(monkeypatch):
  """Each fsync takes a fifth of a second, as on a busy network disk."""
  fsync = os.fsync

  def slow(descriptor):
    time.sleep(0.2)
    fsync(descriptor)

  monkeypatch.setattr(os, "fsync", slow)


def test_a_save_does_not_wait_for_the_disk(tmp_path, slow_disk):
  """Neither for the arrays nor for what else is written.

  Oracle: the clock; one fsync alone would be over the limit.
  """
  path = tmp_path / "prompt.npy"
  with runs.RunCheckpoints(tmp_path / "run") as checkpoints:
    waited = []
    for step in range(1, 5):
      state = make_state(step, 100, 768)
      value = np.array(state["trainable"]["encoder"]["prompt"]["prompt"][
          "prompt"])
      start = time.perf_counter()
      checkpoints.save(
          step, state, position(step),
          lambda value=value: npy.write(path, value))
      waited.append(time.perf_counter() - start)
      checkpoints.wait()
      assert time.perf_counter() - start > 1  # it is slow
      np.testing.assert_array_equal(npy.read(path), value)
  assert min(waited) < 0.05, waited


def test_what_belongs_to_a_checkpoint_is_there_before_it(tmp_path):
  seen = []
  with saved(tmp_path, 3) as checkpoints:
    checkpoints.save(
        6, make_state(6), position(6), lambda: seen.append(checkpoints.steps()))
    checkpoints.wait()
    assert seen == [[3]] and checkpoints.steps() == [6]

    def refused():
      raise UserError("cannot write prompt.npy")

    checkpoints.save(9, make_state(9), position(9), refused)
    with pytest.raises(UserError, match="9 into .*: cannot write prompt.npy;"):
      checkpoints.wait()
    assert os.listdir(tmp_path) == ["checkpoint_6"]
