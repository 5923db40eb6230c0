"""Reading and writing `.npy`, against numpy; attacks are built by hand."""

import io
import os
import pickle
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.formats import link_whole, npy, write_whole

PROMPT = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)


def saved(array, **kwargs) -> bytes:
  buffer = io.BytesIO()
  np.save(buffer, array, **kwargs)
  return buffer.getvalue()


def with_header(text: str, data: bytes = b"", version=(1, 0)) -> bytes:
  text = text.encode()
  size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
  return b"\x93NUMPY" + bytes(version) + size + text + data


def read_bytes(tmp_path, content: bytes, **kwargs):
  path = tmp_path / "prompt.npy"
  path.write_bytes(content)
  return npy.read(path, **kwargs)


@pytest.mark.parametrize("name", ["p.npy", "encoder.prompt.prompt.prompt"])
def test_round_trip_is_bit_exact_and_numpy_reads_it(tmp_path, name):
  path = tmp_path / name
  npy.write(path, PROMPT)
  assert os.listdir(tmp_path) == [name]
  for array in (npy.read(path), np.load(path, allow_pickle=False)):
    assert array.dtype == np.float32
    assert array.tobytes() == PROMPT.tobytes()


@pytest.mark.parametrize("array", [
    PROMPT.astype(np.float16), PROMPT.astype(np.float64), PROMPT.astype(">f4"),
    np.asfortranarray(PROMPT)])
def test_reads_every_float_type_and_order(tmp_path, array):
  values = read_bytes(tmp_path, saved(array))
  assert values.dtype == np.float32 and values.flags.c_contiguous
  np.testing.assert_array_equal(values, array.astype(np.float32))


def test_reads_the_bfloat16_of_the_original(tmp_path):
  array = PROMPT.astype(ml_dtypes.bfloat16)
  content = saved(array)
  assert b"V2" in content  # What numpy makes of it, and what must be undone.
  np.testing.assert_array_equal(
      read_bytes(tmp_path, content), array.astype(np.float32))


def test_write_casts_bfloat16_to_float32(tmp_path):
  array = PROMPT.astype(ml_dtypes.bfloat16)
  npy.write(tmp_path / "p.npy", array)
  np.testing.assert_array_equal(
      np.load(tmp_path / "p.npy"), array.astype(np.float32))


def test_reads_the_released_prompts(shared_data):
  paths = sorted((shared_data / "released_prompts").rglob("*.npy"))
  assert paths
  for path in paths:
    np.testing.assert_array_equal(
        npy.read(path), np.load(path).astype(np.float32))


def test_shape_is_checked_with_both_shapes_in_the_message(tmp_path):
  content = saved(PROMPT)
  assert read_bytes(tmp_path, content, shape=(5, 8)).shape == (5, 8)
  with pytest.raises(UserError, match=r"prompt.npy.*\(5, 8\).*\(100, 768\)"):
    read_bytes(tmp_path, content, shape=(100, 768))


@pytest.mark.parametrize("shape", [(), (8,), (1, 5, 8), (0, 8), (5, 0)])
def test_a_prompt_has_two_dimensions(tmp_path, shape):
  with pytest.raises(UserError, match=r"\[P, H\]"):
    read_bytes(tmp_path, saved(np.zeros(shape, np.float32)))


class Exploit:
  """Unpickled, it makes a file: the proof that code ran."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_pickles_are_refused_and_not_run(tmp_path):
  proof = tmp_path / "proof"
  bomb = np.array([[Exploit(proof)]], dtype=object)
  with pytest.raises(UserError, match="pickled"):
    read_bytes(tmp_path, saved(bomb, allow_pickle=True))
  with pytest.raises(UserError, match="not a .npy file"):
    read_bytes(tmp_path, pickle.dumps(bomb))
  assert not proof.exists()


TEXT = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }\n"
ATTACKS = {
    "more than the file holds": with_header(TEXT % "1000000, 1000000"),
    "overflowing product": with_header(TEXT % "4294967296, 4294967296"),
    "negative": with_header(TEXT % "-5, -8", bytes(160)),
    "booleans": with_header(TEXT % "True, True", bytes(4)),
    "huge integer": with_header(TEXT % ("9" * 4000 + ", 8")),
    "header longer than file": b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\x7f{}",
    "long header": with_header(" " * 60000 + TEXT % "5, 8", bytes(160)),
    "nested brackets": with_header("(" * 9000),
    "nested minus": with_header("-" * 9000 + "1"),
    "no keys": with_header("{}\n"),
    "list": with_header("[1, 2]\n"),
    "bytes that are no text": with_header("\udc80".encode(
        "utf-8", "surrogatepass").decode("latin1")),
    "version 3": with_header(TEXT % "5, 8", bytes(160), (3, 0)),
    "version 9": with_header(TEXT % "5, 8", bytes(160), (9, 0)),
    "structured": saved(np.zeros((5, 8), [("a", "<f4")])),
    "integers": saved(np.zeros((5, 8), np.int32)),
    "complex": saved(np.zeros((5, 8), np.complex64)),
    "text": saved(np.array([["a", "b"]])),
    "empty": b"",
    "zip": b"PK\x03\x04" + bytes(100),
    "trailing": saved(PROMPT) + b"\0",
    "nan": saved(np.where(PROMPT > 1, np.nan, PROMPT)),
    "infinity": saved(np.where(PROMPT > 1, np.inf, PROMPT)),
    "overflow of float32": saved(PROMPT.astype(np.float64) * 1e300),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_in_one_sentence_without_memory(tmp_path, attack):
  tracemalloc.start()
  try:
    with pytest.raises(UserError, match="prompt.npy") as caught:
      read_bytes(tmp_path, ATTACKS[attack])
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
  finally:
    tracemalloc.stop()
  assert "\n" not in str(caught.value)


def test_every_truncation_is_refused(tmp_path):
  content = saved(PROMPT)
  for length in range(len(content)):
    with pytest.raises(UserError):
      read_bytes(tmp_path, content[:length])


@pytest.mark.filterwarnings("ignore")  # numpy's, of Python 2's headers.
def test_damaged_headers_end_in_a_user_error_or_in_an_array(tmp_path):
  """Fuzz: 2,000 random edits of the header, no other exception."""
  rng = np.random.default_rng(1)
  content = saved(PROMPT)
  refused = 0
  for _ in range(2000):
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 4)):
      damaged[rng.integers(0, 128)] = rng.integers(0, 256)
    try:
      assert read_bytes(tmp_path, bytes(damaged)).dtype == np.float32
    except UserError:
      refused += 1
  assert refused > 1000


def test_paths_that_are_no_file(tmp_path):
  with pytest.raises(UserError, match="absent.npy"):
    npy.read(tmp_path / "absent.npy")
  with pytest.raises(UserError, match="is a folder"):
    npy.read(tmp_path)
  with pytest.raises(UserError, match="regular file"):
    npy.read("/dev/null")


def test_write_refuses_what_read_would_refuse(tmp_path):
  with pytest.raises(UserError, match="NaN"):
    npy.write(tmp_path / "p.npy", PROMPT * np.nan)
  assert not os.listdir(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch):
  path = tmp_path / "p.npy"
  npy.write(path, PROMPT)

  def full(descriptor):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(UserError, match="disk is full"):
    npy.write(path, PROMPT * 2)
  assert os.listdir(tmp_path) == ["p.npy"]
  np.testing.assert_array_equal(npy.read(path), PROMPT)


def test_write_names_the_way_out(tmp_path):
  with pytest.raises(UserError, match="absent.*its folder is gone"):
    write_whole(tmp_path / "absent" / "p.npy", b"")
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="a part of that path is a file"):
    write_whole(tmp_path / "file" / "p.npy", b"")


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_is_the_same_file_or_a_copy(
    tmp_path, monkeypatch, links):
  def refused(source, path):
    raise OSError(95, "Operation not supported")

  if not links:
    monkeypatch.setattr(os, "link", refused)
  first, second = tmp_path / "first", tmp_path / "second"
  for content in (b"one", b"two", b"two"):
    write_whole(first, content)
    link_whole(first, second)
    link_whole(first, second)  # which is that file already
    assert second.read_bytes() == content
    assert os.path.samefile(first, second) == links
    write_whole(first, b"another")  # is a file of its own again
    assert second.read_bytes() == content
  assert sorted(os.listdir(tmp_path)) == ["first", "second"]
  with pytest.raises(UserError, match="absent.*its folder is gone"):
    link_whole(first, tmp_path / "absent" / "second")
