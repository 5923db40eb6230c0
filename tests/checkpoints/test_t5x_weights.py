"""Reading T5X's checkpoints.

Oracles: a checkpoint that T5X wrote, read a second time by tensorstore and
Flax; and arrays that `write_t5x` (by Flax and gzip), or orbax, wrote.
"""

import gzip
import json
import os
import shutil
import struct

import flax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import checkpoints
from prompt_tuning.checkpoints import t5x
from prompt_tuning.errors import UserError

BFLOAT16 = np.dtype(jnp.bfloat16)


def some_arrays(dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = {
      "token_embedder/embedding": (11, 6), "encoder/encoder_norm/scale": (6,),
      "encoder/layers_0/mlp/wi/kernel": (6, 9), "odd/cube": (3, 4, 5)}
  return {k: rng.normal(size=s).astype(dtype) for k, s in shapes.items()}


def read_all(weights):
  out = {}
  for name, leaf in weights.arrays.items():
    out[name] = np.full(leaf.shape, 99, leaf.dtype)
    weights.read_into(name, out[name])
  return out


def assert_same(got, want):
  assert set(got) == set(want)
  for name in want:
    assert got[name].dtype == want[name].dtype, name
    assert got[name].tobytes() == want[name].tobytes(), name


def test_the_checkpoint_that_t5x_wrote(shared_data):
  ts = pytest.importorskip("tensorstore")
  folder = shared_data / "t5x" / "test_t5_1_1_tiny" / "checkpoint_3"
  content = flax.serialization.msgpack_restore(
      (folder / "checkpoint").read_bytes())
  want = {}
  flat = flax.traverse_util.flatten_dict(
      content["optimizer"]["target"], sep="/",
      is_leaf=lambda _, x: not isinstance(x, dict) or "kvstore" in x)
  for name, leaf in flat.items():
    if isinstance(leaf, dict):
      path = str(folder / leaf["kvstore"]["path"])
      leaf = ts.open({
          "driver": "zarr", "kvstore": {"driver": "file", "path": path},
      }).result().read().result()
    want[name] = np.asarray(leaf)
  weights = t5x.T5XCheckpoint(folder)
  assert weights.step == 3
  assert len(weights.arrays) == 52
  assert_same(read_all(weights), want)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16, np.float16])
@pytest.mark.parametrize("chunks", [
    None, lambda s: tuple(-(-n // 2) for n in s), lambda s: (4,) * len(s)])
@pytest.mark.parametrize("block_bytes", [1, 40, 1 << 20])
def test_chunks_of_any_shape_in_blocks_of_any_size(
    tmp_path, monkeypatch, dtype, chunks, block_bytes, write_t5x):
  monkeypatch.setattr(checkpoints, "BLOCK_BYTES", block_bytes)
  want = some_arrays(dtype)
  write_t5x(tmp_path / "c", want, chunks=chunks, bucket=chunks is None)
  weights = t5x.T5XCheckpoint(tmp_path / "c")
  assert weights.step == 7
  assert_same(read_all(weights), want)


def test_no_block_is_larger_than_asked(tmp_path, monkeypatch, write_t5x):
  monkeypatch.setattr(checkpoints, "BLOCK_BYTES", 16)
  write_t5x(tmp_path / "c", some_arrays(), chunks=lambda s: (5,) * len(s))
  weights = t5x.T5XCheckpoint(tmp_path / "c")
  for name in weights.arrays:
    assert all(b.nbytes <= 16 for _, b in weights.blocks(name))


def test_a_float32_file_into_bfloat16_rounds_as_numpy_does(tmp_path, write_t5x):
  want = some_arrays()
  write_t5x(tmp_path / "c", want)
  weights = t5x.T5XCheckpoint(tmp_path / "c")
  out = np.empty((11, 6), BFLOAT16)
  weights.read_into("token_embedder/embedding", out)
  table = want["token_embedder/embedding"].astype(BFLOAT16)
  assert out.tobytes() == table.tobytes()


def test_uncompressed_chunks(tmp_path, write_t5x):
  write_t5x(tmp_path / "c", some_arrays(), compress=False)
  assert_same(read_all(t5x.T5XCheckpoint(tmp_path / "c")), some_arrays())


def test_version_2_kept_bfloat16_as_uint16(tmp_path, write_t5x):
  want = some_arrays(BFLOAT16)
  write_t5x(tmp_path / "c", {k: v.view(np.uint16) for k, v in want.items()},
            version=2)
  assert_same(read_all(t5x.T5XCheckpoint(tmp_path / "c")), want)


def test_version_0_is_a_bare_tree(tmp_path, write_t5x):
  want = some_arrays()
  write_t5x(tmp_path / "c", want, version=0)
  weights = t5x.T5XCheckpoint(tmp_path / "c")
  assert weights.step == 7
  assert_same(read_all(weights), want)


@pytest.mark.parametrize("block_bytes", [12, 1 << 20])
def test_arrays_inline_also_in_pieces(tmp_path, monkeypatch, block_bytes):
  monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 50)
  monkeypatch.setattr(checkpoints, "BLOCK_BYTES", block_bytes)
  want = some_arrays()
  content = {"version": 3, "optimizer": {
      "state": {"step": 2},
      "target": flax.traverse_util.unflatten_dict(want, sep="/")}}
  data = flax.serialization.msgpack_serialize(content)
  assert b"__msgpack_chunked_array__" in data
  (tmp_path / "checkpoint").write_bytes(data)
  weights = t5x.T5XCheckpoint(tmp_path)
  assert weights.step == 2
  assert_same(read_all(weights), want)


@pytest.mark.parametrize("options", [
    {"use_ocdbt": True}, {"use_ocdbt": False}, {"use_zarr3": True}])
def test_orbax_layout(tmp_path, options):
  ocp = pytest.importorskip("orbax.checkpoint")
  want = {**some_arrays(), "encoder/half": np.arange(5).astype(BFLOAT16)}
  tree = {"state": {"step": np.int32(60)},
          "target": flax.traverse_util.unflatten_dict(want, sep="/")}
  folder = tmp_path / "checkpoint_60"
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as saver:
    saver.save(folder / "state", tree)
  for path in (folder, folder / "state"):
    weights = t5x.T5XCheckpoint(path)
    assert weights.step == 60
    assert_same(read_all(weights), want)
  for file in folder.rglob("*"):  # a damaged one says so
    if file.is_file() and (file.parent.name == "d" or file.name[0].isdigit()):
      os.truncate(file, file.stat().st_size // 2)
  with pytest.raises(UserError, match="state"):
    read_all(t5x.T5XCheckpoint(folder))


# ------------------------------------------------------------------- bad input


def test_a_folder_of_checkpoints_lists_them(tmp_path, write_t5x):
  for step in (9, 10):
    write_t5x(tmp_path / f"checkpoint_{step}", some_arrays())
  with pytest.raises(
      UserError, match="checkpoint_9, checkpoint_10.*checkpoint_10"):
    t5x.T5XCheckpoint(tmp_path)


def test_no_checkpoint_there(tmp_path):
  with pytest.raises(UserError, match="no T5X checkpoint"):
    t5x.T5XCheckpoint(tmp_path)
  with pytest.raises(UserError, match="no checkpoint folder"):
    t5x.T5XCheckpoint(tmp_path / "absent")


def test_a_missing_chunk_is_an_error_unless_zarr_gives_a_fill_value(
    tmp_path, write_t5x):
  want = some_arrays()
  halves = lambda shape: tuple(-(-n // 2) for n in shape)  # noqa: E731
  write_t5x(tmp_path / "c", want, chunks=halves)
  write_t5x(tmp_path / "filled", want, chunks=halves, fill=2.5)
  for folder in (tmp_path / "c", tmp_path / "filled"):
    (folder / "target.token_embedder.embedding" / "1.1").unlink()
  with pytest.raises(UserError, match=r"embedding/1\.1 is missing"):
    read_all(t5x.T5XCheckpoint(tmp_path / "c"))
  want["token_embedder/embedding"][6:, 3:] = 2.5
  assert_same(read_all(t5x.T5XCheckpoint(tmp_path / "filled")), want)


def test_a_missing_array_is_an_error(tmp_path, write_t5x):
  write_t5x(tmp_path / "c", some_arrays())
  shutil.rmtree(tmp_path / "c" / "target.odd.cube")
  with pytest.raises(UserError, match=r"target\.odd\.cube.*missing"):
    t5x.T5XCheckpoint(tmp_path / "c")


def test_a_reference_cannot_leave_the_folder(tmp_path, write_zarr):
  write_zarr(tmp_path / "secret", np.ones((2, 2), np.float32), (2, 2))
  (tmp_path / "c").mkdir()
  reference = {"driver": "zarr", "metadata": {},
               "kvstore": {"driver": "file", "path": "../secret"}}
  (tmp_path / "c" / "checkpoint").write_bytes(
      flax.serialization.msgpack_serialize(
          {"version": 3, "optimizer": {"target": {"a": reference}}}))
  with pytest.raises(UserError, match="c/secret.*missing"):
    t5x.T5XCheckpoint(tmp_path / "c")


_FILES = ("checkpoint", "target.token_embedder.embedding/.zarray",
          "target.token_embedder.embedding/0.0")


@pytest.mark.parametrize("name", _FILES)
def test_a_truncated_file_is_named(tmp_path, name, write_t5x):
  write_t5x(tmp_path / "c", some_arrays())
  file = tmp_path / "c" / name
  data = file.read_bytes()
  for length in sorted({0, 1, *range(2, len(data), 7), len(data) - 1}):
    file.write_bytes(data[:length])
    with pytest.raises(UserError, match=file.name):
      read_all(t5x.T5XCheckpoint(tmp_path / "c"))


@pytest.mark.parametrize("name", _FILES)
def test_damage_ends_in_a_sentence_or_nowhere(tmp_path, name, write_t5x):
  write_t5x(tmp_path / "c", some_arrays())
  file = tmp_path / "c" / name
  data = file.read_bytes()
  rng = np.random.default_rng(1)
  told = 0
  for _ in range(300):
    damaged = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 4)):
      damaged[place] = rng.integers(256)
    file.write_bytes(damaged)
    try:
      read_all(t5x.T5XCheckpoint(tmp_path / "c"))
    except UserError as error:
      told += 1
      assert str(tmp_path / "c") in str(error)
  assert told > 100


def test_headers_that_claim_more_than_there_is(tmp_path, write_t5x):
  write_t5x(tmp_path / "c", some_arrays())
  header = tmp_path / "c" / "target.odd.cube" / ".zarray"
  good = json.loads(header.read_text())
  for shape in ([10**12, 10**6], [3, 4, 10**9], [10**30] * 3, [-1, 4, 5]):
    for chunks in (shape, [1] * len(shape)):
      header.write_text(json.dumps({**good, "shape": shape, "chunks": chunks}))
      index = {"driver": "zarr", "kvstore": {"path": "target.odd.cube"}}
      (tmp_path / "c" / "checkpoint").write_bytes(
          flax.serialization.msgpack_serialize(
              {"version": 3, "optimizer": {"target": {"cube": index}}}))
      with pytest.raises(UserError, match="zarray is damaged"):
        t5x.T5XCheckpoint(tmp_path / "c")


@pytest.mark.parametrize("data", [
    b"\xc6\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff\xa1a",
    b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\x91" * 5000,
    b"\xc1", b"\x01", b"\x80", b"\x81\xa6target\x80",
    b"\xc7" + struct.pack(">B", 4) + b"\x01\x93\x91\xff\xa0"])
def test_message_pack_that_lies(tmp_path, data):
  (tmp_path / "checkpoint").write_bytes(data)
  with pytest.raises(UserError, match=str(tmp_path)):
    t5x.T5XCheckpoint(tmp_path)


@pytest.mark.parametrize("change", [
    {"order": "F"}, {"filters": [{"id": "delta"}]}, {"zarr_format": 3},
    {"compressor": {"id": "blosc"}}, {"dtype": "|O"}, {"dtype": "<M8[s]"},
    {"dtype": [["a", "<f4"]]}, {"shape": [3, 4]}, {"chunks": [0, 4, 5]},
    {"dimension_separator": "/../"}, {"fill_value": "x"}])
def test_zarr_that_is_not_read_is_refused(tmp_path, change, write_t5x):
  write_t5x(tmp_path / "c", some_arrays())
  header = tmp_path / "c" / "target.odd.cube" / ".zarray"
  header.write_text(json.dumps({**json.loads(header.read_text()), **change}))
  with pytest.raises(UserError, match=r"odd\.cube/\.zarray"):
    t5x.T5XCheckpoint(tmp_path / "c")


def test_a_chunk_longer_than_its_header_says(tmp_path, write_t5x):
  write_t5x(tmp_path / "c", some_arrays())
  chunk = tmp_path / "c" / "target.odd.cube" / "0.0.0"
  chunk.write_bytes(gzip.compress(gzip.decompress(chunk.read_bytes()) + b"1"))
  with pytest.raises(UserError, match="more than its header"):
    read_all(t5x.T5XCheckpoint(tmp_path / "c"))
