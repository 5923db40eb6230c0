"""Directories that are damaged, hostile, or of another model than they say.

What must come of each is one sentence that names the file and what a model of
that family has there; no memory is taken and no code is run.
"""

import json
import os
import resource
import struct

import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning.checkpoints import base
from prompt_tuning.errors import UserError


def edit(folder, change):
  file = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  change(tensors)
  safetensors.numpy.save_file(tensors, file)


MISSING = {
    "gpt2": "transformer.h.1.attn.c_attn.bias",
    "llama": "model.layers.0.self_attn.k_proj.weight",
    "phi": "lm_head.bias",
    "phi3": "model.layers.1.mlp.gate_up_proj.weight",
    "codegen": "transformer.h.0.attn.qkv_proj.weight",
    "bloom": "transformer.word_embeddings_layernorm.bias"}
NAMES = {"gpt2": "GPT-2", "llama": "Llama", "phi": "Phi", "phi3": "Phi-3",
         "codegen": "CodeGen", "bloom": "BLOOM"}


@pytest.mark.parametrize("case", MISSING)
def test_a_tensor_that_is_missing_misshapen_or_too_many(
    case, tmp_path, write_family):
  name, family = MISSING[case], NAMES[case]
  write_family(tmp_path, case)
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  shape = list(tensors[name].shape)
  edit(tmp_path, lambda t: t.pop(name))
  with pytest.raises(UserError) as told:
    base.open_base(tmp_path)
  assert (f"{tmp_path} lacks {name} {shape}, which a {family} of its "
          "config.json has") in str(told.value)
  wrong = np.zeros([n + 1 for n in shape], np.float32)
  edit(tmp_path, lambda t: t.update({name: wrong}))
  with pytest.raises(UserError) as told:
    base.open_base(tmp_path)
  assert (f"holds {name} as {list(wrong.shape)}, but in a {family} of its "
          f"config.json it is {shape}") in str(told.value)
  edit(tmp_path, lambda t: t.update(
      {name: tensors[name], "h.9.odd.weight": wrong}))
  with pytest.raises(
      UserError, match=rf"h\.9\.odd\.weight, which a {family} of its conf"):
    base.open_base(tmp_path)


def test_more_layers_or_heads_than_there_are(tmp_path, write_family):
  write_family(tmp_path, "llama", num_hidden_layers=3)
  with pytest.raises(
      UserError, match=r"lacks model\.layers\.2\.\S+ \[24\] and 8 more"):
    base.open_base(tmp_path)
  write_family(tmp_path, "llama", num_hidden_layers=1)
  with pytest.raises(UserError, match=r"has model\.layers\.1\..* 6 more, "):
    base.open_base(tmp_path)
  write_family(tmp_path, "llama", num_hidden_layers=10**12)
  with pytest.raises(UserError, match="1000000000000 layers.* only 21 tens"):
    base.open_base(tmp_path)
  write_family(tmp_path, "llama", num_key_value_heads=3)
  with pytest.raises(UserError, match="num_key_value_heads 3, which 4 query"):
    base.open_base(tmp_path)
  write_family(tmp_path, "llama", vocab_size=40)
  with pytest.raises(UserError, match="vocab_size 40.*41 rows"):
    base.open_base(tmp_path)


def test_a_pickle_is_never_read(tmp_path, write_family):
  write_family(tmp_path, "bloom")
  os.rename(tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin")
  with pytest.raises(UserError, match=(
      "never read; convert.*AutoModelForCausalLM.from_pretrained.*save_pre")):
    base.open_base(tmp_path)


def test_code_beside_the_weights_is_not_run(tmp_path, write_family):
  """CodeGen2 is published with it."""
  write_family(tmp_path, "codegen2", auto_map={
      "AutoConfig": "configuration_codegen.CodeGenConfig",
      "AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM"})
  ran = tmp_path / "ran"
  for name in ("configuration_codegen", "modeling_codegen", "__init__"):
    (tmp_path / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')")
  weights = base.open_base(tmp_path)
  list(weights.blocks("decoder/layers_0/attention/query/kernel"))
  assert not ran.exists()


def test_quantised_models_are_refused(tmp_path, write_family):
  write_family(
      tmp_path, "llama", quantization_config={"quant_method": "gptq"})
  with pytest.raises(UserError, match="quantization_config.*float32"):
    base.open_base(tmp_path)


def rewrite_header(file, change):
  data = file.read_bytes()
  (length,) = struct.unpack("<Q", data[:8])
  header = json.loads(data[8:8 + length])
  change(header)
  text = json.dumps(header).encode()
  file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length:])


TABLE, SCALE = "model.embed_tokens.weight", "model.norm.weight"


def claim(name, **entries):
  return lambda header: header[name].update(entries)


@pytest.mark.parametrize("change", [
    claim(SCALE, data_offsets=[0, 96]),  # bytes of another tensor
    claim(SCALE, data_offsets=[0, 2**40]),
    claim(SCALE, data_offsets=[96, 0]),
    claim(SCALE, data_offsets=[-96, 0]),
    claim(TABLE, shape=[2**31, 2**31]),
    claim(TABLE, shape=[2**62, 8]),
    claim(TABLE, shape=[-41, -24]),
    claim(TABLE, dtype="F128"),
    lambda header: header.update({"x" * 1000: dict(header[SCALE])}),
    lambda header: header.update(__metadata__={"a": {"b": 1}}),
])
def test_headers_that_lie_cost_no_memory(change, tmp_path, write_family):
  write_family(tmp_path, "llama")
  file = tmp_path / "model.safetensors"
  rewrite_header(file, change)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
  with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
    base.open_base(tmp_path)
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert grown < 32 << 10


def test_a_sparse_file_of_a_huge_model(tmp_path, write_family):
  """Only a file's length, no byte of it, backs what its header claims."""
  write_family(tmp_path, "llama")
  rows = 10**9
  header = {TABLE: {"dtype": "F32", "shape": [rows, 24],
                    "data_offsets": [0, rows * 96]}}
  text = json.dumps(header).encode()
  with open(tmp_path / "model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    file.truncate(8 + len(text) + rows * 96)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(UserError, match="lacks model.norm.weight"):
    base.open_base(tmp_path)
  assert resource.getrusage(
      resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_truncated_weights_are_named(tmp_path, write_family):
  write_family(tmp_path, "bloom")
  file = tmp_path / "model.safetensors"
  data = file.read_bytes()
  for length in [0, 7, 8, 9, *range(10, len(data), 9973), len(data) - 1]:
    file.write_bytes(data[:length])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
      base.open_base(tmp_path)


@pytest.mark.parametrize("case", ["codegen2", "phi3"])
def test_any_damage_of_config_json_ends_in_a_sentence_or_nowhere(
    case, tmp_path, write_family):
  write_family(tmp_path, case)
  file = tmp_path / "config.json"
  data = file.read_bytes()
  rng = np.random.default_rng(2)
  told = 0
  for _ in range(150):
    damaged = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 4)):
      damaged[place] = rng.integers(256)
    file.write_bytes(damaged)
    try:
      base.open_base(tmp_path)
    except UserError as error:
      told += 1
      assert str(tmp_path) in str(error)
  assert told > 20
