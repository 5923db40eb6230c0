"""Tests of formats.peft: its files, and what is refused.

Oracle: files that PEFT wrote, byte for byte.
"""

import errno
import json
import warnings

import flax
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import formats
from prompt_tuning.errors import UserError
from prompt_tuning.formats import peft
from prompt_tuning.formats.peft import configs
from prompt_tuning.methods import lora


def nested(tree):
  return flax.traverse_util.unflatten_dict(tree, sep="/")


# ------------------------------------------------------------------------ files

SUPPORTED = (
    "prompt_gpt2", "prompt_t5", "ptuning_gpt2", "ptuning_lstm_gpt2",
    "prefix_gpt2_proj", "prefix_llama", "prefix_bart", "mpt_gpt2", "mpt_t5",
    "ia3_gpt2", "ia3_t5", "lora_gpt2", "lora_llama")


@pytest.mark.parametrize("name", SUPPORTED)
def test_saved_files_are_pefts_byte_for_byte(shared_data, tmp_path, name):
  source = shared_data / "peft_adapters/initial/adapters" / name
  peft.save(peft.load(source), tmp_path / "copy")
  for file in ("adapter_config.json", "adapter_model.safetensors"):
    assert (tmp_path / "copy" / file).read_bytes() == (
        source / file).read_bytes()
  assert len(list((tmp_path / "copy").iterdir())) == 2


def test_the_file_of_one_prompt(base_of):
  """The header that PEFT writes for an 8 x 8 prompt, and its padding."""
  base = base_of("gpt2")
  adapter = peft.from_params(
      nested({"decoder/prompt/prompt/prompt": np.zeros((8, 8))}), base,
      "PROMPT_TUNING")
  content = safetensors.numpy.save(dict(adapter.tensors), {"format": "pt"})
  header = (b'{"__metadata__":{"format":"pt"},"prompt_embeddings":{"dtype":'
            b'"F32","shape":[8,8],"data_offsets":[0,256]}}')
  assert content[:8] == (112).to_bytes(8, "little")
  assert content[8:120] == header.ljust(112)


def test_inference_mode_is_what_is_written(tmp_path, base_of):
  adapter = peft.from_params(
      nested({"decoder/prompt/prompt/prompt": np.zeros((2, 8))}),
      base_of("gpt2"), "PROMPT_TUNING", inference_mode=False)
  peft.save(adapter, tmp_path)
  text = (tmp_path / "adapter_config.json").read_text()
  assert json.loads(text)["inference_mode"] is True
  assert not text.endswith("\n") and text.startswith('{\n  "auto_mapping"')


@pytest.mark.parity
def test_the_fields_are_pefts():
  """Of the installed release, if it is the one that they were taken from."""
  theirs = pytest.importorskip("peft")
  if theirs.__version__ != configs.VERSION:
    pytest.skip(f"peft is {theirs.__version__}, the fields {configs.VERSION}'s")
  classes = {
      "PROMPT_TUNING": theirs.PromptTuningConfig,
      "P_TUNING": theirs.PromptEncoderConfig,
      "PREFIX_TUNING": theirs.PrefixTuningConfig,
      "MULTITASK_PROMPT_TUNING": theirs.MultitaskPromptTuningConfig,
      "LORA": theirs.LoraConfig, "IA3": theirs.IA3Config}
  for kind, make in classes.items():
    expected = json.loads(json.dumps(make().to_dict()))
    expected["inference_mode"] = True
    assert configs.of(kind, {}) == expected, kind


# ---------------------------------------------------------------------- refused


@pytest.fixture
def adapter_folder(tmp_path, base_of, lora_of):
  """Writes an adapter and changes its files; gives the folder."""

  def write(kind="PROMPT_TUNING", tensors=None, **changes):
    base = base_of("gpt2")
    if kind == "LORA":
      found = lora_of(
          base, 2, np.random.default_rng(0), ".*attention/.*", True)
      adapter = peft.from_params(nested(found), base, "LORA", lora.Lora(2))
    elif kind == "PREFIX_TUNING":
      adapter = peft.from_params(
          nested({"decoder/prefix/prefix": np.ones((3, 32))}), base, kind)
    else:
      adapter = peft.from_params(
          nested({"decoder/prompt/prompt/prompt": np.ones((3, 8))}), base,
          kind)
    peft.save(adapter, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
    if tensors is not None:
      safetensors.numpy.save_file(
          {name: np.asarray(v) for name, v in tensors.items()},
          tmp_path / "adapter_model.safetensors")
    return tmp_path

  return write


@pytest.mark.parametrize("kind", ["CPT", "ADAPTION_PROMPT", "CARTRIDGE", "VERA",
                                  None, ["LORA"]])
def test_types_that_we_do_not_have_are_named(adapter_folder, kind):
  with pytest.raises(UserError, match="not supported: PROMPT_TUNING") as info:
    peft.load(adapter_folder(peft_type=kind))
  assert repr(kind) in str(info.value)


@pytest.mark.parametrize("name", ["cpt_gpt2", "adaption_gpt2"])
def test_real_ones_of_these_types(shared_data, name):
  with pytest.raises(UserError, match="which is not supported"):
    peft.load(shared_data / "peft_adapters/initial/adapters" / name)


def test_unknown_keys_are_left_out_with_a_warning(adapter_folder):
  folder = adapter_folder(use_telepathy=True, runtime_config={})
  with pytest.warns(UserWarning, match="left out: use_telepathy"):
    adapter = peft.load(folder)
  assert "use_telepathy" not in adapter.config
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    peft.load(adapter_folder(runtime_config={}))  # PEFT's own, at run time


@pytest.mark.parametrize("changes, words", [
    ({"auto_mapping": {"base_model_class": "A", "parent_library": "evil.m"}},
     "auto_mapping a class of 'evil.m'"),
    ({"auto_mapping": {"parent_library": "transformers_modules.x"}},
     "auto_mapping a class of 'transformers_modules.x'"),
    ({"auto_mapping": "os.system"}, "auto_mapping a class of 'os.system'"),
    ({"prompt_tuning_init": "TEXT",
      "tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
    ({"task_type": "SING"}, "task_type 'SING'"),
    ({"task_type": ["CAUSAL_LM"]}, "task_type .* PEFT does not write"),
    ({"num_virtual_tokens": "8"}, "num_virtual_tokens '8'"),
    ({"tokenizer_kwargs": [1]}, "tokenizer_kwargs .* PEFT does not write"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
])
def test_settings_that_are_refused(adapter_folder, changes, words):
  with pytest.raises(UserError, match=words):
    peft.load(adapter_folder(**changes))


def test_transformers_own_classes_are_harmless(adapter_folder):
  peft.load(adapter_folder(auto_mapping={
      "base_model_class": "GPT2LMHeadModel",
      "parent_library": "transformers.models.gpt2.modeling_gpt2"}))


def test_a_tokenizer_with_code_is_refused(adapter_folder):
  folder = adapter_folder(
      prompt_tuning_init="TEXT", prompt_tuning_init_text="a",
      tokenizer_name_or_path="tok")
  peft.load(folder)  # a name alone runs nothing
  (folder / "tok").mkdir()
  (folder / "tok/tokenizer_config.json").write_text(
      '{"auto_map": {"AutoTokenizer": ["tok.Evil", null]}}')
  with pytest.raises(UserError, match="tokenizer 'tok' .* code"):
    peft.load(folder)


@pytest.mark.parametrize("changes", [
    {"use_dora": True}, {"bias": "all"}, {"lora_bias": True},
    {"init_lora_weights": "pissa"}, {"layer_replication": [[0, 2]]},
    {"alora_invocation_tokens": [1]}, {"target_parameters": ["w"]},
    {"use_qalora": True}, {"trainable_token_indices": [3]}])
def test_loras_of_another_function_are_refused(adapter_folder, changes):
  with pytest.raises(UserError, match=f"has {next(iter(changes))} .*merge"):
    peft.load(adapter_folder("LORA", **changes))


@pytest.mark.parametrize("key", ["(a+)+$", "q|v", ".*q_proj"])
def test_expressions_in_patterns_are_refused(adapter_folder, key, base_of):
  adapter = peft.load(adapter_folder("LORA", rank_pattern={key: 2}))
  with pytest.raises(UserError, match="expression .* in rank_pattern"):
    peft.to_params(adapter, base_of("gpt2"))


@pytest.mark.parametrize("tensors, words", [
    ({}, "holds no tensors"),
    ({"prompt_embeddings": np.ones((3, 8), np.int32)}, "as int32"),
    ({"prompt_embeddings": np.full((3, 8), np.nan)}, "NaN or infinite"),
])
def test_tensors_that_are_refused(adapter_folder, tensors, words):
  with pytest.raises(UserError, match=words):
    peft.load(adapter_folder(tensors=tensors))


@pytest.mark.parametrize("kind, tensors, changes, words", [
    ("PROMPT_TUNING", {"prompt": np.ones((3, 8))}, {},
     "lacks the tensor prompt_embeddings"),
    ("PROMPT_TUNING", {"prompt_embeddings": np.ones((3, 6))}, {},
     r"\(3, 6\), and \(3, 8\) is needed: it was trained on 'gpt2'"),
    ("PROMPT_TUNING", None, {"num_virtual_tokens": -1}, "positive whole"),
    ("PROMPT_TUNING", None, {"num_transformer_submodules": 2},
     "num_transformer_submodules 2"),
    ("PROMPT_TUNING", None, {"task_type": "SEQ_CLS"},
     "SEQ_CLS, and gpt2 is a model for CAUSAL_LM"),
    ("PREFIX_TUNING", None, {"num_layers": 3}, "3 layers and 4 heads"),
    ("LORA", None, {"r": 3}, r"lora_A of .* \(2, 8\), and \(3, 8\)"),
    ("LORA", None, {"r": "two"}, "r 'two'"),
    ("LORA", {"base_model.model.x.lora_A.weight": np.ones((2, 8))}, {},
     "changes x, which the model has not"),
    ("LORA", {"base_model.model.transformer.h.0.attn.c_attn"
              ".lora_magnitude_vector.weight": np.ones(24)}, {},
     "lora_magnitude_vector"),
])
def test_adapters_of_another_model(
    adapter_folder, kind, tensors, changes, words, base_of):
  adapter = peft.load(adapter_folder(kind, tensors, **changes))
  with pytest.raises(UserError, match=words):
    peft.to_params(adapter, base_of("gpt2"))


def test_a_causal_adapter_is_not_for_t5(adapter_folder, base_of):
  adapter = peft.load(adapter_folder())
  with pytest.raises(UserError, match="CAUSAL_LM, and t5 is .* SEQ_2_SEQ_LM"):
    peft.delta(adapter, base_of("t5"))


def test_encoders_that_were_folded_cannot_be_trained_on(adapter_folder):
  folder = adapter_folder("PREFIX_TUNING", prefix_projection=True)
  peft.load(folder)
  with pytest.raises(UserError, match="projection, which PEFT does not save"):
    peft.load(folder, trainable=True)
  folder = adapter_folder("P_TUNING")
  with pytest.raises(UserError, match="P-tuning encoder"):
    peft.load(folder, trainable=True)
  peft.load(adapter_folder("PROMPT_TUNING"), trainable=True)


def test_files_that_are_refused(adapter_folder):
  folder = adapter_folder()
  tensors = folder / "adapter_model.safetensors"
  content = tensors.read_bytes()
  for damaged in (content[:-1], b"", b"\xff" * 8 + content[8:],
                  content[:8] + b"x" + content[9:]):
    tensors.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged or truncated"):
      peft.load(folder)
  tensors.unlink()
  with pytest.raises(UserError, match="is missing"):
    peft.load(folder)
  (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
  with pytest.raises(UserError, match="a pickle"):
    peft.load(folder)
  config = folder / "adapter_config.json"
  for damaged in ("[]", "{", "[" * 100_000, " " * (4 << 20) + " {}"):
    config.write_text(damaged)
    with pytest.raises(UserError, match="damaged or truncated"):
      peft.load(folder)
  config.unlink()
  with pytest.raises(UserError, match="no PEFT adapter"):
    peft.load(folder)


def test_encoders_must_be_folded_first(base_of):
  params = nested({"decoder/prompt/prompt/mlp_0/kernel": np.ones((8, 8))})
  with pytest.raises(UserError, match="fold an encoder"):
    peft.from_params(params, base_of("gpt2"), "P_TUNING")
  with pytest.raises(UserError, match="has no telepathy"):
    peft.from_params(
        nested({"decoder/prompt/prompt/prompt": np.ones((3, 8))}),
        base_of("gpt2"), "PROMPT_TUNING", telepathy=1)


def test_t5x_bases_do_not_say_what_they_are(shared_data):
  from prompt_tuning.checkpoints import base as base_lib

  weights = base_lib.open_base(
      shared_data / "t5x/test_t5_1_1_tiny/checkpoint_3")
  with pytest.raises(UserError, match="does not say what model it is"):
    peft.Base.of(weights)


def test_a_failed_save_leaves_nothing(adapter_folder, tmp_path, monkeypatch):
  adapter = peft.load(adapter_folder())
  write = formats.write_whole

  def full_disk(path, content):
    if path.endswith("adapter_config.json"):
      raise OSError(errno.ENOSPC, "full")
    write(path, content)

  monkeypatch.setattr(formats, "write_whole", full_disk)
  before = sorted(tmp_path.iterdir())
  with pytest.raises(UserError, match="the disk is full"):
    peft.save(adapter, tmp_path / "new")
  assert sorted(tmp_path.iterdir()) == before
