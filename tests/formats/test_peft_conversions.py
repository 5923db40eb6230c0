"""Tests of formats.peft: between adapters and our parameters.

Oracle for LoRA in fused modules: the weight maps of the families, for a sum of
deltas is stored as weights are.
"""

import flax
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.formats import peft
from prompt_tuning.formats.peft import configs, modules
from prompt_tuning.methods import ia3, lora

FAMILIES = ("gpt2", "llama", "phi", "phi3", "codegen", "bloom", "t5")


def flat(tree):
  return flax.traverse_util.flatten_dict(tree, sep="/")


def nested(tree):
  return flax.traverse_util.unflatten_dict(tree, sep="/")


def assert_same(got, want):
  got, want = flat(got), flat(want)
  assert set(got) == set(want)
  for path, value in want.items():
    np.testing.assert_allclose(got[path], value, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_come_back(family, base_of):
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
def test_prefixes_come_back(family, base_of):
  base = base_of(family)
  width = 2 * 2 * base.num_kv_heads * 2
  params = nested({"decoder/prefix/prefix": np.random.default_rng(0).normal(
      size=(3, width))})
  adapter = peft.from_params(params, base, "PREFIX_TUNING")
  assert adapter.config["token_dim"] == base.num_kv_heads * 2
  assert adapter.config["num_attention_heads"] == base.num_kv_heads
  assert_same(peft.to_params(adapter, base), params)


def test_a_prefix_of_t5_is_what_pefts_layers_read(base_of):
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


def test_the_papers_other_sets_are_refused(base_of):
  """PEFT has no prefix of the encoder, and none of cross-attention."""
  table = np.zeros((3, 2 * 2 * 2 * 2))
  for path in ("encoder/prefix/prefix", "decoder/cross_prefix/prefix"):
    params = nested({"decoder/prefix/prefix": table, path: table})
    with pytest.raises(UserError, match=path):
      peft.from_params(params, base_of("t5"), "PREFIX_TUNING")


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_multitask_prompts_come_back(family, base_of):
  base = base_of(family)
  rng = np.random.default_rng(0)
  own = {"prompt": rng.normal(size=(5, 8)), "cols": rng.normal(size=(3, 5, 2)),
         "rows": rng.normal(size=(3, 2, 8))}
  params = nested({f"{base.prompt_path}/{n}": v for n, v in own.items()})
  adapter = peft.from_params(params, base, "MULTITASK_PROMPT_TUNING")
  assert (adapter.config["num_tasks"], adapter.config["num_ranks"]) == (3, 2)
  assert_same(peft.to_params(adapter, base), params)


def stored_deltas(pieces, found, scale):
  """What the deltas add to the stored weights, by their tensor's name."""
  out = {}
  for path, piece in pieces.items():
    layer = path.removesuffix("/kernel")
    if f"{layer}/lora/a" in found:
      stored = out.setdefault(piece.names[0], np.zeros(piece.stored))
      piece.put(found[f"{layer}/lora/a"] @ found[f"{layer}/lora/b"] * scale,
                stored)
  return out


def lora_scale(config, name):
  """Rank and alpha / rank; PEFT's patterns match the end of a name."""

  def of(pattern, default):
    found = [value for ending, value in config[pattern].items()
             if modules.ends_in(name, ending)]
    return found[0] if found else default

  rank = of("rank_pattern", config["r"])
  return rank, of("alpha_pattern", config["lora_alpha"]) / rank


@pytest.mark.parametrize("layers", [".*", ".*attention/(query|value)"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_adds_the_same_to_stored_weights(
    family, shared, layers, base_of, lora_of, pieces_of):
  base, rng = base_of(family), np.random.default_rng(0)
  found = lora_of(base, 2, rng, layers, shared)
  method = lora.Lora(2, 6.0, (layers,))
  adapter = peft.from_params(nested(found), base, "LORA", method)
  expected = stored_deltas(pieces_of(family), found, 3.0)
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
def test_lora_comes_back_as_the_same_function(family, base_of, lora_of):
  base, rng = base_of(family), np.random.default_rng(1)
  found = lora_of(base, 2, rng)
  adapter = peft.from_params(nested(found), base, "LORA", lora.Lora(2, 6.0))
  method, back = peft.delta(adapter, base), flat(peft.to_params(adapter, base))
  for path in (p.removesuffix("/a") for p in found if p.endswith("/a")):
    np.testing.assert_allclose(
        back[f"{path}/a"] @ back[f"{path}/b"] * method.scale,
        found[f"{path}/a"] @ found[f"{path}/b"] * 3.0, rtol=1e-4, atol=1e-5)


def test_some_layers_are_named_whole(base_of, lora_of):
  base = base_of("llama")
  found = lora_of(
      base, 2, np.random.default_rng(0), ".*layers_1/attention/query")
  adapter = peft.from_params(nested(found), base, "LORA", lora.Lora(2))
  assert adapter.config["target_modules"] == ["1.self_attn.q_proj"]


def test_patterns_and_rslora_have_their_scales(base_of):
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
def test_ia3_comes_back(family, base_of):
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


def test_stacked_layers_are_taken_apart(base_of, lora_of):
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


# ---------------------------------------------------------------------- targets


def test_targets_are_the_shortest_endings_that_fit():
  every = [f"h.{n}.{name}" for n in range(2)
           for name in ("attn.c_proj", "mlp.c_proj", "mlp.c_fc")]
  assert modules.targets(["h.0.mlp.c_fc", "h.1.mlp.c_fc"], every) == ["c_fc"]
  assert modules.targets(
      ["h.0.mlp.c_proj", "h.1.mlp.c_proj"], every) == ["mlp.c_proj"]
  assert modules.targets(every[:1], every) == ["0.attn.c_proj"]


