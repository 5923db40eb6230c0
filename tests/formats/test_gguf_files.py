"""GGUF headers: what the `gguf` package writes, and what nobody should.

Oracle: the package's own writer and reader, on files that are as they say.
"""

import random
import struct
import tracemalloc

import gguf as package
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.formats import gguf

STRING, ARRAY, UINT32, FLOAT32 = 8, 9, 4, 0


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  path = tmp_path_factory.mktemp("gguf") / "small.gguf"
  writer = package.GGUFWriter(path, "llama")
  writer.add_uint32("a.count", 7)
  writer.add_float32("a.small", 1e-5)
  writer.add_bool("a.flag", True)
  writer.add_string("a.text", "naïve 😀")
  writer.add_array("a.words", ["", "one", "東京"])
  writer.add_array("a.numbers", [1.5, -2.0])
  draw = np.random.default_rng(0)
  writer.add_tensor("matrix", draw.normal(size=(3, 32)).astype(np.float32))
  writer.add_tensor("half", draw.normal(size=(2, 5)).astype(np.float16))
  writer.add_tensor(
      "quantised", package.quants.quantize(
          draw.normal(size=(4, 64)).astype(np.float32),
          package.GGMLQuantizationType.Q8_0),
      raw_dtype=package.GGMLQuantizationType.Q8_0)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def test_metadata(written):
  file = gguf.GgufFile(written)
  assert file.get("general.architecture", "") == "llama"
  assert file.get("a.count", 1) == 7
  assert file.get("a.small", 0.0) == 1e-5
  assert file.get("a.flag", False) is True
  assert file.get("a.text") == "naïve 😀"
  assert file.get("a.absent") is None and file.get("a.absent", 3) == 3
  assert file.strings("a.words") == ["", "one", "東京"]
  np.testing.assert_array_equal(file.numbers("a.numbers"), [1.5, -2.0])
  assert "a.words" in file and "a.absent" not in file


@pytest.mark.parametrize("ask, what", [
    (lambda f: f.get("a.words"), "a.words as an array"),
    (lambda f: f.get("a.text", 1), "a.text as str, where one int"),
    (lambda f: f.get("a.flag", 1), "a.flag as bool, where one int"),
    (lambda f: f.strings("a.numbers"), "a.numbers as an array.*of texts"),
    (lambda f: f.strings("a.absent"), "a.absent as nothing"),
    (lambda f: f.numbers("a.count"), "a.count as int.*of numbers"),
])
def test_metadata_of_another_type(written, ask, what):
  with pytest.raises(UserError, match=what):
    ask(gguf.GgufFile(written))


def test_tensors(written):
  file, oracle = gguf.GgufFile(written), package.GGUFReader(written)
  assert list(file.tensors) == [t.name for t in oracle.tensors]
  for tensor in oracle.tensors:
    ours = file.tensors[tensor.name]
    assert ours.shape == tuple(tensor.shape.tolist()[::-1])
    assert (ours.start, ours.size) == (tensor.data_offset, tensor.n_bytes)
    want = tensor.data if tensor.name != "quantised" else (
        package.quants.dequantize(tensor.data, tensor.tensor_type))
    got = file.rows(tensor.name, 0, ours.shape[0])
    assert got.dtype == ours.dtype == want.dtype
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(file.rows(tensor.name, 1, 2), want[1:2])


def test_truncated_anywhere(written, tmp_path):
  last = gguf.GgufFile(written).tensors["quantised"]
  content = written.read_bytes()[:last.start + last.size]  # without padding
  path = tmp_path / "short.gguf"
  for length in (*range(0, len(content), 7), len(content) - 1):
    path.write_bytes(content[:length])
    with pytest.raises(UserError, match="short.gguf"):
      gguf.GgufFile(path)
  path.write_bytes(content)
  file = gguf.GgufFile(path)
  path.write_bytes(content[:last.start])
  with pytest.raises(UserError, match="inside the tensor quantised"):
    file.rows("quantised", 0, 4)


def test_changed_bits_are_noticed_or_harmless(written, tmp_path):
  content = written.read_bytes()
  draw, path = random.Random(0), tmp_path / "changed.gguf"
  for _ in range(400):
    changed = bytearray(content)
    changed[draw.randrange(500)] ^= 1 << draw.randrange(8)
    path.write_bytes(changed)
    try:
      file = gguf.GgufFile(path)
      for name, tensor in file.tensors.items():
        file.rows(name, 0, min(2, tensor.shape[0]))
    except UserError as error:
      assert "changed.gguf" in str(error)


def text(value):
  return struct.pack("<Q", len(value)) + value


def header(tensors=0, keys=0, version=3, magic=b"GGUF"):
  return magic + struct.pack("<IQQ", version, tensors, keys)


def key(name, kind, content):
  return text(name) + struct.pack("<I", kind) + content


def tensor(name, shape, kind=FLOAT32, offset=0):
  return (text(name) + struct.pack("<I", len(shape))
          + struct.pack(f"<{len(shape)}Q", *shape)
          + struct.pack("<IQ", kind, offset))


HUGE = 1 << 62


@pytest.mark.parametrize("content, reason", [
    (b"", "says that 4 bytes"),
    (header(magic=b"GGML"), "letters GGUF"),
    (header(version=1), "version is 1"),
    (header(version=3 << 24), "big-endian"),
    (header(keys=HUGE), f"{HUGE} keys"),
    (header(tensors=HUGE), f"{HUGE} tensors"),
    (header(keys=60_000), "says that 8 bytes"),
    (header(keys=1) + struct.pack("<Q", HUGE), f"says that {HUGE} bytes"),
    (header(keys=1) + key(b"a", STRING, struct.pack("<Q", HUGE)),
     f"says that {HUGE} bytes"),
    (header(keys=1) + key(b"a", ARRAY, struct.pack("<IQ", UINT32, HUGE)),
     f"says that {4 * HUGE} bytes"),
    (header(keys=1) + key(b"a", ARRAY, struct.pack("<IQ", STRING, HUGE)),
     "says that 8 bytes"),
    (header(keys=1) + key(b"a", ARRAY, struct.pack("<IQIQ", ARRAY, 1, 4, 0)),
     "arrays of arrays"),
    (header(keys=1) + key(b"a", 77, b""), "77"),
    (header(keys=1) + key(b"\xff", UINT32, b"\0\0\0\0"), "utf-8"),
    (header(keys=2) + 2 * key(b"a", UINT32, b"\0\0\0\0"), "key a twice"),
    (header(keys=1) + key(b"general.alignment", UINT32, bytes(4)),
     "alignment is 0"),
    (header(tensors=2) + 2 * tensor(b"t", (1,)), "tensor t twice"),
    (header(tensors=2) + tensor(b"t", (4,)) + tensor(b"u", (4,), offset=8)
     + bytes(99), "u lies over another"),
    (header(tensors=1) + tensor(b"t", (1 << 31,) * 4), "t ends at byte"),
    (header(tensors=1) + tensor(b"t", (1,), offset=HUGE), "t ends at byte"),
    (header(tensors=1) + text(b"t") + struct.pack("<I", 1 << 30),
     "has 1073741824 axes"),
    (header(tensors=1) + tensor(b"t", (0,)), "cannot be stored as F32"),
    (header(tensors=1) + tensor(b"t", (33,), kind=2), "cannot be stored as Q4"),
    (header(tensors=1) + tensor(b"t", (1,), kind=999), "999"),
])
def test_hostile_headers_cost_nothing(tmp_path, content, reason):
  path = tmp_path / "hostile.gguf"
  path.write_bytes(content)
  tracemalloc.start()
  try:
    with pytest.raises(UserError, match=f"hostile.gguf .*{reason}"):
      gguf.GgufFile(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
  finally:
    tracemalloc.stop()


def test_a_header_has_an_end(tmp_path):
  path = tmp_path / "long.gguf"
  with open(path, "wb") as file:
    file.write(header(keys=1) + key(b"a", STRING, struct.pack("<Q", 1 << 33)))
    file.truncate(1 << 34)  # sparse
  with pytest.raises(UserError, match="its header ends before"):
    gguf.GgufFile(path)


def test_missing(tmp_path):
  with pytest.raises(UserError, match="none.gguf: No such file"):
    gguf.GgufFile(tmp_path / "none.gguf")
  with pytest.raises(UserError, match="cannot read"):
    gguf.GgufFile(tmp_path)


def test_a_quantisation_that_cannot_be_undone(tmp_path):
  path = tmp_path / "q8_k.gguf"
  path.write_bytes(
      header(tensors=1) + tensor(b"t", (256,), kind=15) + bytes(1000))
  with pytest.raises(UserError, match="t as Q8_K, which"):
    gguf.GgufFile(path).rows("t", 0, 1)
