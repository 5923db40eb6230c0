"""The benchmark's own arithmetic, and its searches on a tiny model.

Oracles: closed forms; transformers' searches.
"""

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.scripts import (
  benchmark,
  benchmark_contenders,
  benchmark_search,
)


def test_tokens_are_compared_within_a_dtype():
  lines = benchmark.same_tokens({
      "ours, float32": [[1, 2], [3, 4]],
      "transformers, float32": [[1, 2], [3, 4]],
      "ours, bfloat16": [[1, 2], [3, 4]],
      "transformers, bfloat16": [[1, 2], [3, 5]]})
  assert lines == [
      "ours, float32 and transformers, float32: the same tokens: yes, in 2 of "
      "2 texts",
      "ours, bfloat16 and transformers, bfloat16: the same tokens: no, in 1 of "
      "2 texts"]
  assert benchmark.same_tokens({"ours, float32": None}) == []


def test_a_ratio_is_of_steps_in_turns():
  """A machine that slows down to a half slows both."""
  assert benchmark._ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == 2.0


def test_decoding_asks_for_its_weights(monkeypatch, tmp_path):
  with pytest.raises(errors.UserError, match="none.gguf is no file"):
    benchmark_search.smollm2(str(tmp_path / "none.gguf"))
  monkeypatch.setattr(
      benchmark_search.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.UserError, match="--checkpoint"):
    benchmark_search.smollm2(None)


def test_texts_are_real_and_long_enough(smollm2):
  ids = benchmark_search.texts(str(smollm2))
  assert ids.shape == (benchmark_search.BATCH, benchmark_search.INPUTS)
  assert len({tuple(row) for row in ids.tolist()}) == len(ids)
  assert benchmark_search.smollm2(str(smollm2)) == str(smollm2)


@pytest.fixture
def tiny_gguf(tmp_path):
  """A random Llama of one layer: H 32, N * D 32, K * D 16, F 48, V 40."""
  package = pytest.importorskip("gguf")
  writer = package.GGUFWriter(tmp_path / "m.gguf", "llama")
  for name, value in (
      ("block_count", 1), ("embedding_length", 32), ("feed_forward_length", 48),
      ("attention.head_count", 4), ("attention.head_count_kv", 2),
      ("context_length", 99), ("rope.dimension_count", 8), ("vocab_size", 40)):
    writer.add_uint32(f"llama.{name}", value)
  writer.add_float32("llama.rope.freq_base", 500.0)
  writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
  draw = np.random.default_rng(0)
  for name, shape in {
      "token_embd": (40, 32), "output_norm": (32,), "output": (40, 32),
      "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32),
      "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32),
      "blk.0.ffn_gate": (48, 32), "blk.0.ffn_up": (48, 32),
      "blk.0.ffn_down": (32, 48), "blk.0.attn_norm": (32,),
      "blk.0.ffn_norm": (32,)}.items():
    writer.add_tensor(
        f"{name}.weight", draw.normal(0, 0.5, shape).astype(np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return str(tmp_path / "m.gguf")


@pytest.mark.parity
@pytest.mark.parametrize("setting", benchmark_search.SETTINGS)
def test_both_libraries_decode_the_same(tiny_gguf, monkeypatch, setting):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  for name, value in (("BATCH", 3), ("INPUTS", 6), ("TOKENS", 8)):
    monkeypatch.setattr(benchmark_search, name, value)
  ids = np.random.default_rng(1).integers(3, 40, (3, 6), np.int32)
  monkeypatch.setattr(benchmark_search, "texts", lambda path: ids)
  runs = benchmark_search.SETTINGS[setting](tiny_gguf)
  ours, theirs = (runs[f"{who}, float32"][0]()()["tokens"]
                  for who in ("ours", "transformers"))
  assert np.shape(ours) == (3, 8) and len(np.unique(ours)) > 3
  assert ours == theirs


@pytest.mark.slow
def test_the_command_lets_contenders_take_turns(capfd):
  benchmark.main(["--setting", "save", "--steps", "2"])
  out, err = capfd.readouterr()
  assert "ours, float32" in out and "CPU s/step" in out
  assert err.count("step ") == 2


def test_every_setting_names_its_contenders():
  """Each is a pair of functions; the first of ours alone is the reference."""
  for name, setting in benchmark_contenders.SETTINGS.items():
    found = setting(None)
    assert all(map(callable, sum(found.values(), ()))), name
  assert list(benchmark_contenders.prefix(None)) == [
      "ours, prompt", "ours, prefix"]
