"""Tests of formats.peft: files, conversions and what is refused.

Oracles: files that PEFT wrote, byte for byte; for LoRA in fused modules, the
weight maps of the families (the sum of deltas, stored as weights are).
"""

import json
import re
import types
import warnings

import flax
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning.checkpoints import families
from prompt_tuning.errors import UserError
from prompt_tuning.formats import peft
from prompt_tuning.formats.peft import configs, modules
from prompt_tuning.methods import ia3, lora
from prompt_tuning.models import causal_lm, t5

SIZES = {"vocab_size": 32, "embed_dim": 8, "num_layers": 2, "num_heads": 4,
         "head_dim": 2, "mlp_dim": 12}
FAMILIES = {
    "gpt2": SIZES | {"mlp_activations": ("gelu",)},
    "llama": SIZES | {"num_kv_heads": 2, "tie_logits": False},
    "phi": SIZES | {"mlp_activations": ("gelu",)},
    "phi3": SIZES | {"num_kv_heads": 2},
    "codegen": SIZES | {"mlp_activations": ("gelu",), "tie_logits": False},
    "bloom": SIZES | {"mlp_activations": ("gelu",)},
    "t5": {"vocab_size": 32, "embed_dim": 8, "num_heads": 2, "head_dim": 4,
           "mlp_dim": 12, "num_encoder_layers": 2, "num_decoder_layers": 2}}


def base_of(family, **changes):
  config = FAMILIES[family] | changes
  if family == "t5":
    config.setdefault("mlp_activations", ("relu",))
  else:
    config.setdefault("mlp_activations", ("silu", "linear"))
  return peft.Base.of(types.SimpleNamespace(
      path=f"models/{family}", family=family, config=config))


def pieces_of(family):
  kind = t5.Config if family == "t5" else causal_lm.Config
  config = dict(FAMILIES[family])
  if family == "t5":
    config["mlp_activations"] = ("relu",)
  return families.of_type(family, "").weight_map(kind(**config), {})


def flat(tree):
  return flax.traverse_util.flatten_dict(tree, sep="/")


def nested(tree):
  return flax.traverse_util.unflatten_dict(tree, sep="/")


def assert_same(got, want):
  got, want = flat(got), flat(want)
  assert set(got) == set(want)
  for path, value in want.items():
    np.testing.assert_allclose(got[path], value, rtol=1e-6, err_msg=path)


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


def test_the_file_of_one_prompt():
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


def test_inference_mode_is_what_is_written(tmp_path):
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


# ------------------------------------------------------------------ conversions


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_come_back(family):
  base = base_of(family)
  table = np.random.default_rng(0).normal(size=(5, 8))
  params = nested({f"{base.prompt_path}/prompt": table})
  for kind in ("PROMPT_TUNING", "P_TUNING"):
    adapter = peft.from_params(params, base, kind)
    assert adapter.config["num_virtual_tokens"] == 5
    assert adapter.config["num_transformer_submodules"] == (
        2 if family == "t5" else 1)
    assert_same(peft.to_params(adapter, base), params)
    np.testing.assert_allclose(peft.plain_table(adapter), table, rtol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prefixes_come_back(family):
  base = base_of(family)
  width = 2 * 2 * base.num_kv_heads * 2
  params = nested({"decoder/prefix/prefix": np.random.default_rng(0).normal(
      size=(3, width))})
  adapter = peft.from_params(params, base, "PREFIX_TUNING")
  assert adapter.config["token_dim"] == base.num_kv_heads * 2
  assert adapter.config["num_attention_heads"] == base.num_kv_heads
  assert_same(peft.to_params(adapter, base), params)


def test_a_prefix_of_t5_is_what_pefts_layers_read():
  """Layer i reads 2 i mod L: with L = 4, the layers 0, 2, 0, 2."""
  base = base_of("t5", num_encoder_layers=4, num_decoder_layers=4)
  theirs = np.random.default_rng(0).normal(size=(3, 4, 16)).astype(np.float32)
  adapter = peft.from_params(
      nested({"decoder/prefix/prefix": theirs[:, [0, 2, 0, 2]].reshape(3, -1)}),
      base, "PREFIX_TUNING")
  stored = adapter.tensors["prompt_embeddings"].reshape(3, 4, 16)
  np.testing.assert_array_equal(stored[:, ::2], theirs[:, ::2])
  got = peft.to_params(adapter, base)["decoder"]["prefix"]["prefix"]
  np.testing.assert_array_equal(
      got.reshape(3, 4, 16), theirs[:, [0, 2, 0, 2]])
  with pytest.raises(UserError, match="they differ"):
    peft.from_params(
        nested({"decoder/prefix/prefix": theirs.reshape(3, -1)}), base,
        "PREFIX_TUNING")


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_multitask_prompts_come_back(family):
  base = base_of(family)
  rng = np.random.default_rng(0)
  own = {"prompt": rng.normal(size=(5, 8)), "cols": rng.normal(size=(3, 5, 2)),
         "rows": rng.normal(size=(3, 2, 8))}
  params = nested({f"{base.prompt_path}/{n}": v for n, v in own.items()})
  adapter = peft.from_params(params, base, "MULTITASK_PROMPT_TUNING")
  assert (adapter.config["num_tasks"], adapter.config["num_ranks"]) == (3, 2)
  assert_same(peft.to_params(adapter, base), params)


def lora_of(base, rank, rng, layers=".*", shared=False):
  """Random deltas of the matching layers, one a for each module if shared."""
  found = {}
  for module in base.modules.values():
    a = rng.normal(size=(module.inputs, rank))
    for path, outputs in module.parts.items():
      if re.fullmatch(layers, path):
        found[f"{path}/lora/a"] = (
            a if shared else rng.normal(size=(module.inputs, rank)))
        found[f"{path}/lora/b"] = rng.normal(size=(rank, len(outputs)))
  return found


def stored_deltas(family, found, scale):
  """What the deltas add to the stored weights, by their tensor's name."""
  out = {}
  for path, piece in pieces_of(family).items():
    layer = path.removesuffix("/kernel")
    if f"{layer}/lora/a" in found:
      stored = out.setdefault(piece.names[0], np.zeros(piece.stored))
      piece.put(found[f"{layer}/lora/a"] @ found[f"{layer}/lora/b"] * scale,
                stored)
  return out


def lora_scale(config, name):
  """PEFT's: patterns match the end of a module's name."""
  rank, alpha = config["r"], config["lora_alpha"]
  for field, default in (("rank_pattern", rank), ("alpha_pattern", alpha)):
    for ending, value in config[field].items():
      if modules.ends_in(name, ending):
        default = value
    rank, alpha = (default, alpha) if field == "rank_pattern" else (
        rank, default)
  return rank, alpha / rank


@pytest.mark.parametrize("layers", [".*", ".*attention/(query|value)"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_adds_the_same_to_stored_weights(family, shared, layers):
  base, rng = base_of(family), np.random.default_rng(0)
  found = lora_of(base, 2, rng, layers, shared)
  method = lora.Lora(2, 6.0, (layers,))
  adapter = peft.from_params(nested(found), base, "LORA", method)
  expected = stored_deltas(family, found, 3.0)
  names = {name.removesuffix(".weight") for name in expected}
  for name in names:
    a, b = (adapter.tensors[f"base_model.model.{name}.lora_{part}.weight"]
            for part in "AB")
    rank, scale = lora_scale(adapter.config, name)
    assert rank == len(a)
    added = (b @ a) * scale
    if base.modules[name].fan_in_fan_out:
      added = added.T
    np.testing.assert_allclose(
        added, expected[f"{name}.weight"], rtol=1e-4, atol=1e-5)
  matched = {
      name for name in base.modules
      for ending in adapter.config["target_modules"]
      if modules.ends_in(name, ending)}
  assert matched == names
  assert len(adapter.tensors) == 2 * len(names)


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_comes_back_as_the_same_function(family):
  base, rng = base_of(family), np.random.default_rng(1)
  found = lora_of(base, 2, rng)
  adapter = peft.from_params(nested(found), base, "LORA", lora.Lora(2, 6.0))
  method, back = peft.delta(adapter, base), flat(peft.to_params(adapter, base))
  for path in (p.removesuffix("/a") for p in found if p.endswith("/a")):
    np.testing.assert_allclose(
        back[f"{path}/a"] @ back[f"{path}/b"] * method.scale,
        found[f"{path}/a"] @ found[f"{path}/b"] * 3.0, rtol=1e-4, atol=1e-5)


def test_some_layers_are_named_whole():
  base = base_of("llama")
  found = lora_of(
      base, 2, np.random.default_rng(0), ".*layers_1/attention/query")
  adapter = peft.from_params(nested(found), base, "LORA", lora.Lora(2))
  assert adapter.config["target_modules"] == ["1.self_attn.q_proj"]


def test_patterns_and_rslora_have_their_scales():
  base = base_of("llama")
  tensors, rng = {}, np.random.default_rng(0)
  ranks = {"q_proj": 2, "v_proj": 4}
  for name in base.modules:
    ending = name.rpartition(".")[2]
    if ending in ranks:
      module, rank = base.modules[name], ranks[ending]
      tensors[f"base_model.model.{name}.lora_A.weight"] = rng.normal(
          size=(rank, module.inputs))
      tensors[f"base_model.model.{name}.lora_B.weight"] = rng.normal(
          size=(module.outputs, rank))
  config = configs.of("LORA", {
      "r": 2, "lora_alpha": 4, "use_rslora": True, "task_type": "CAUSAL_LM",
      "rank_pattern": {"v_proj": 4},
      "alpha_pattern": {"^model\\.layers\\.1\\.self_attn\\.v_proj": 16}})
  adapter = peft.Adapter("LORA", config, tensors)
  method, got = peft.delta(adapter, base), flat(peft.to_params(adapter, base))
  assert method.rank == 4
  for n, name, scale in (
      (0, "q", 4 / 2**0.5), (0, "v", 4 / 2), (1, "v", 16 / 2)):
    a, b = (tensors[f"base_model.model.model.layers.{n}.self_attn.{name}_proj"
                    f".lora_{part}.weight"] for part in "AB")
    path = f"decoder/layers_{n}/attention/" + {"q": "query", "v": "value"}[name]
    np.testing.assert_allclose(
        got[f"{path}/lora/a"] @ got[f"{path}/lora/b"] * method.scale,
        (b @ a).T * scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_ia3_comes_back(family):
  base, rng = base_of(family), np.random.default_rng(0)
  method = ia3.Ia3()
  found = {}
  for module in base.modules.values():
    for path, outputs in module.parts.items():
      if path.endswith("/mlp/wo"):
        found[f"{path}/ia3/scale"] = rng.normal(size=module.inputs)
      elif path.endswith(("attention/key", "attention/value")):
        found[f"{path}/ia3/scale"] = rng.normal(size=len(outputs))
  adapter = peft.from_params(nested(found), base, "IA3", method)
  back = flat(peft.to_params(adapter, base))
  for path, value in found.items():
    np.testing.assert_allclose(back.pop(path), value, rtol=1e-6)
  assert all(np.all(value == 1) for value in back.values())  # fused queries
  assert set(adapter.config["feedforward_modules"]) < set(
      adapter.config["target_modules"])


def test_stacked_layers_are_taken_apart():
  base = base_of("llama")
  found = lora_of(
      base, 2, np.random.default_rng(0), ".*attention/(query|value)")
  stacked = {}
  for name in ("query", "value"):
    for part in "ab":
      stacked[f"decoder/layers/attention/{name}/lora/{part}"] = np.stack([
          found[f"decoder/layers_{n}/attention/{name}/lora/{part}"]
          for n in range(2)])
  one, other = (peft.from_params(nested(tree), base, "LORA", lora.Lora(2))
                for tree in (found, stacked))
  assert one.config == other.config
  for name, value in one.tensors.items():
    np.testing.assert_array_equal(value, other.tensors[name])


# ------------------------------------------------------------------------ targets


def test_targets_are_the_shortest_endings_that_fit():
  every = [f"h.{n}.{name}" for n in range(2)
           for name in ("attn.c_proj", "mlp.c_proj", "mlp.c_fc")]
  assert modules.targets(["h.0.mlp.c_fc", "h.1.mlp.c_fc"], every) == ["c_fc"]
  assert modules.targets(
      ["h.0.mlp.c_proj", "h.1.mlp.c_proj"], every) == ["mlp.c_proj"]
  assert modules.targets(every[:1], every) == ["0.attn.c_proj"]


# ------------------------------------------------------------------------ refused


@pytest.fixture
def adapter_folder(tmp_path):
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
def test_expressions_in_patterns_are_refused(adapter_folder, key):
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
    adapter_folder, kind, tensors, changes, words):
  adapter = peft.load(adapter_folder(kind, tensors, **changes))
  with pytest.raises(UserError, match=words):
    peft.to_params(adapter, base_of("gpt2"))


def test_a_causal_adapter_is_not_for_t5(adapter_folder):
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


def test_encoders_must_be_folded_first():
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
