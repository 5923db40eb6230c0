"""Decoder-only families: weights and config.json, read and written.

Oracle: transformers, whose logits are committed for one seed and computed live
for another; for what is written, transformers and our own reader.
"""

import functools
import json
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import checkpoints, prompts
from prompt_tuning.checkpoints import base, families, hugging_face
from prompt_tuning.checkpoints.families import config_json
from prompt_tuning.errors import UserError
from prompt_tuning.models import causal_lm, rotary
from prompt_tuning.train import prompts as train_prompts

BFLOAT16 = np.dtype(jnp.bfloat16)
CASES = (
    "gpt2", "gpt2_untied", "llama", "llama3", "deepseek_coder", "smollm2",
    "llama_biases", "phi", "phi3", "phi3_window", "codegen", "codegen2",
    "bloom")


@pytest.fixture(autouse=True)
def highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


def load(folder):
  """(config, parameters) of a directory."""
  config = causal_lm.Config(**base.open_base(folder).config)
  wanted = jax.eval_shape(lambda: causal_lm.CausalLM(config).init(
      jax.random.key(0), jnp.ones((1, 4), jnp.int32)))["params"]
  return config, base.load_base(folder, wanted, np.float32)


class Padded(NamedTuple):
  """Texts: tokens [B, T], and [B, T] bool which are no padding."""

  ids: np.ndarray
  visible: np.ndarray


def both_sides(maker, ids, visible):
  """The same texts padded on the right and on the left."""
  left = Padded(*(maker.left_padded(a, visible) for a in (ids, visible)))
  assert visible[:, 0].all() and left.visible[:, -1].all()
  assert not left.visible[:, 0].all()
  return Padded(ids, visible), left


def our_logits(folder, *padded, prompt=None):
  """Logits [B, T, V] of each batch of texts, behind a prompt if given."""
  config, params = load(folder)
  factory = None
  if prompt is not None:
    factory = functools.partial(
        train_prompts.Prompt, prompt=prompts.Prompt(len(prompt)))
    params["decoder"]["prompt"] = {"prompt": {"prompt": prompt}}
  module = causal_lm.CausalLM(config, factory)
  ids, visible = (np.concatenate(arrays) for arrays in zip(*padded))
  logits = jax.jit(lambda params: module.apply(
      {"params": params}, ids, visible=visible))(params)
  return np.split(logits, len(padded))


def read_all(weights):
  out = {k: np.full(v.shape, np.nan, v.dtype)
         for k, v in weights.arrays.items()}
  for name, array in out.items():
    weights.read_into(name, array)
  return out


def assert_same(got, want):
  assert set(got) == set(want)
  for name in want:
    assert got[name].dtype == want[name].dtype, name
    np.testing.assert_array_equal(got[name], want[name], name)


# ---------------------------------------------------------------------- logits


def close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_all_families_are_compared(causal_lm_maker):
  assert set(CASES) == set(causal_lm_maker.CASES)
  kinds = {kind for kind, _ in causal_lm_maker.CASES.values()}
  others = {"t5", "bart", *(f.MODEL_TYPES[0] for f in families.ENCODERS)}
  assert kinds | others == {f.MODEL_TYPES[0] for f in families.ALL}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_that_transformers_gave(
    case, tmp_path, write_family, causal_lm_maker):
  expected = write_family(tmp_path, case)
  width = base.open_base(tmp_path).config["embed_dim"]
  ids, visible, prompt = causal_lm_maker.tokens(int(expected["seed"]), width)
  assert 0.2 < np.std(expected["logits"]) < 10
  both = both_sides(causal_lm_maker, ids, visible)
  for padded, logits in zip(both, our_logits(tmp_path, *both)):
    close(logits[padded.visible], expected["logits"])
  prompted = our_logits(tmp_path, *both, prompt=prompt)
  for padded, logits in zip(both, prompted):
    close(logits[padded.visible], expected["logits_with_prompt"])
  assert np.max(np.abs(
      expected["logits"] - expected["logits_with_prompt"])) > 0.01


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case, tmp_path, causal_lm_maker):
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  torch.set_num_threads(1)  # more would only wait for each other
  model = causal_lm_maker.model_of_transformers(case, seed=99)
  model.save_pretrained(tmp_path, max_shard_size="6KB")
  assert (tmp_path / "model.safetensors.index.json").exists()
  if case == "codegen2":
    in_one_file(tmp_path, case, model, causal_lm_maker)
  both = both_sides(causal_lm_maker, *causal_lm_maker.tokens(99)[:2])
  for padded, logits in zip(both, our_logits(tmp_path, *both)):
    theirs = causal_lm_maker.logits_of_transformers(model, *padded)
    close(logits[padded.visible], theirs[padded.visible])


def in_one_file(folder, case, model, maker):
  tensors, content = maker.stored(
      case, {k: p.detach().numpy() for k, p in model.named_parameters()},
      json.loads((folder / "config.json").read_text()))
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps(content))


# ------------------------------------------------------------- reading, writing


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_the_models(case, tmp_path, write_family):
  write_family(tmp_path, case)
  weights = hugging_face.HuggingFaceWeights(tmp_path)
  config = causal_lm.Config(**weights.config)
  abstract = jax.eval_shape(lambda: causal_lm.CausalLM(config).init(
      jax.random.key(0), jnp.ones((1, 4), jnp.int32)))["params"]
  flat = {
      "/".join(key.key for key in path): leaf.shape for path, leaf in
      jax.tree_util.tree_flatten_with_path(abstract)[0]}
  assert {k: v.shape for k, v in weights.arrays.items()} == flat


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_what_is_saved_is_read(
    case, dtype, tmp_path, monkeypatch, write_family):
  write_family(tmp_path / "theirs", case)
  weights = base.open_base(tmp_path / "theirs")
  arrays = read_all(weights)
  want = {name: array.astype(dtype) for name, array in arrays.items()}
  hugging_face.save(
      tmp_path / "ours", nested(arrays), weights.config, dtype, weights.family)
  for block_bytes in (1, 500, 2000, 1 << 20):
    monkeypatch.setattr(checkpoints, "BLOCK_BYTES", block_bytes)
    again = base.open_base(tmp_path / "ours")
    assert_same(read_all(again), want)
  assert again.config == weights.config
  assert again.family == weights.family
  file = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
  theirs = safetensors.numpy.load_file(
      tmp_path / "theirs" / "model.safetensors")
  if case != "codegen2":  # is written as CodeGen
    assert_same(file, {k: v.astype(dtype) for k, v in theirs.items()})


def nested(arrays):
  tree = {}
  for path, array in arrays.items():
    *parents, name = path.split("/")
    functools.reduce(lambda t, k: t.setdefault(k, {}), parents, tree)[
        name] = array
  return tree


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_what_we_save(
    case, tmp_path, write_family, causal_lm_maker):
  pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  expected = write_family(tmp_path / "theirs", case)
  weights = base.open_base(tmp_path / "theirs")
  hugging_face.save(
      tmp_path / "ours", nested(read_all(weights)), weights.config, np.float32,
      weights.family, {"bos_token_id": 1, "pad_token_id": 0})
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path / "ours", output_loading_info=True)
  assert not report["missing_keys"]
  assert not report["unexpected_keys"]
  assert model.config.bos_token_id == 1
  assert model.config.eos_token_id is None  # not a guess
  ids, visible, _ = causal_lm_maker.tokens(
      int(expected["seed"]), model.config.hidden_size)
  close(causal_lm_maker.logits_of_transformers(model, ids, visible)[visible],
        expected["logits"])


@pytest.mark.parametrize("case", ["gpt2", "bloom", "llama", "phi3"])
def test_names_without_the_models_prefix(case, tmp_path, write_family):
  """So gpt2 and bloom-560m were published, with masks beside the weights."""
  write_family(tmp_path / "whole", case)
  write_family(tmp_path / "bare", case)
  file = tmp_path / "bare" / "model.safetensors"
  bare = {
      name.removeprefix("transformer.").removeprefix("model."): array
      for name, array in safetensors.numpy.load_file(file).items()}
  if case == "gpt2":
    bare["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.bool_)
    bare["h.1.attn.masked_bias"] = np.array(-1e4)
  if case == "llama":
    bare["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3)
  safetensors.numpy.save_file(bare, file)
  assert_same(*(read_all(base.open_base(tmp_path / name))
                for name in ("bare", "whole")))


def test_a_copy_of_the_table_stands_for_it(tmp_path, write_family):
  write_family(tmp_path / "a", "smollm2")
  write_family(tmp_path / "b", "smollm2")
  file = tmp_path / "b" / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
  safetensors.numpy.save_file(tensors, file)
  want = read_all(base.open_base(tmp_path / "a"))
  assert_same(read_all(base.open_base(tmp_path / "b")), want)
  del tensors["model.embed_tokens.weight"]
  safetensors.numpy.save_file(tensors, file)
  assert_same(read_all(base.open_base(tmp_path / "b")), want)


def test_stacked_layers_and_any_family(tmp_path, write_family):
  write_family(tmp_path / "a", "phi3")
  config, params = load(tmp_path / "a")
  arrays = read_all(base.open_base(tmp_path / "a"))
  layers = [params["decoder"].pop(f"layers_{i}") for i in range(2)]
  params["decoder"]["layers"] = jax.tree.map(
      lambda *leaves: np.stack(leaves), *layers)
  hugging_face.save(tmp_path / "b", params, config, np.float32)
  again = base.open_base(tmp_path / "b")
  assert again.family == "llama"  # the first that can say it
  assert_same(read_all(again), arrays)


# ----------------------------------------------------------------- config.json


def config_of(**content):
  family = families.of_type(content["model_type"], "config.json")
  return family.read_config(config_json.ConfigJson("config.json", content))


LLAMA = {
    "model_type": "llama", "hidden_size": 24, "intermediate_size": 28,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 41}


@pytest.mark.parametrize("scaling, want", [
    ({"rope_type": "default"}, None),
    ({"type": "linear", "factor": 4.0}, rotary.RopeScaling("linear", 4.0)),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
      "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
     rotary.RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))])
def test_both_forms_of_rope(scaling, want):
  old = config_of(**LLAMA, rope_theta=5e5, rope_scaling=scaling)
  new = config_of(**LLAMA, rope_parameters={**scaling, "rope_theta": 5e5})
  assert old == new
  assert (old["rope_scaling"], old["rope_theta"]) == (want, 5e5)
  assert config_of(**LLAMA, rope_scaling=None)["rope_theta"] == 1e4


def test_sizes_that_config_json_leaves_out():
  llama = config_of(**LLAMA)
  assert llama["head_dim"] == 6
  assert llama["num_kv_heads"] == 4
  assert llama["tie_logits"] is False
  phi = config_of(**LLAMA | {
      "model_type": "phi", "hidden_size": 2560, "num_attention_heads": 32,
      "partial_rotary_factor": 0.4})
  assert phi["rotary_dim"] == 32
  window = config_of(**LLAMA | {"model_type": "phi3", "sliding_window": 2047})
  assert window["sliding_window"] == 2047
  bloom = config_of(
      model_type="bloom", n_embed=1024, n_layer=24, num_attention_heads=16,
      vocab_size=250880)
  assert (bloom["head_dim"], bloom["num_heads"]) == (64, 16)


@pytest.mark.parametrize("changes, sentence", [
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}},
     "rope scaling 'dynamic': only 'default', 'linear' and 'llama3'"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
    ({"rope_scaling": {"type": "linear"}}, "factor None.*positive number"),
    ({"rope_scaling": ["linear"]}, "rope parameters"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}},
     "one set of them for all layers"),
    ({"rope_theta": -1}, "rope_theta -1"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu': only 'silu'"),
    ({"attention_bias": "yes"}, "attention_bias 'yes'.*true or false"),
    ({"num_hidden_layers": None}, "num_hidden_layers None"),
    ({"model_type": "phi3", "rope_scaling": {
        "type": "su", "long_factor": [1.0], "short_factor": [1.0]}},
     "rope scaling 'su'.*long context.*4k"),
    ({"model_type": "phi3", "rope_parameters": {"rope_type": "longrope"}},
     "rope scaling 'longrope'.*long context.*4k"),
    ({"model_type": "phi3", "num_attention_heads": 5}, "does not divide"),
    ({"model_type": "phi", "qk_layernorm": True}, "qk_layernorm True"),
    ({"model_type": "phi", "partial_rotary_factor": 0.6}, "even number"),
    ({"model_type": "mamba"}, "'mamba': only t5, mt5, bart, gpt2, llama, phi, "
     "phi3, codegen, bloom, bert, roberta, codesage can be read")])
def test_what_is_not_implemented_is_refused(changes, sentence):
  with pytest.raises(UserError, match=f"config.json .*{sentence}") as told:
    config_of(**LLAMA | changes)
  assert str(told.value).count(".") - str(told.value).count(".json") <= 4


def test_other_families_refuse_what_they_cannot_do():
  gpt2 = {"model_type": "gpt2", "n_embd": 24, "n_head": 3, "n_layer": 2,
          "vocab_size": 41}
  assert config_of(**gpt2)["mlp_dim"] == 96
  for name, value in (("scale_attn_by_inverse_layer_idx", True),
                      ("add_cross_attention", True),
                      ("activation_function", "swish")):
    with pytest.raises(UserError, match=f"{name} {value!r}"):
      config_of(**gpt2 | {name: value})
  codegen = gpt2 | {"model_type": "codegen", "n_head": 6, "rotary_dim": 2}
  with pytest.raises(UserError, match="n_head 6.*4 groups"):
    config_of(**codegen)
  with pytest.raises(UserError, match="n_head 4.*8 groups"):
    config_of(**codegen | {"n_head": 4, "head_dim": 6})
  with pytest.raises(UserError, match="rotary_dim 8 with heads of width 6"):
    config_of(**codegen | {"n_head": 4, "rotary_dim": 8})
  with pytest.raises(UserError, match="residual_connection_post"):
    config_of(model_type="bloom", hidden_size=24, n_layer=1, n_head=2,
              vocab_size=9, apply_residual_connection_post_layernorm=True)


def test_nothing_of_a_model_is_lost_in_its_config_json(tmp_path, write_family):
  write_family(tmp_path / "a", "llama")
  config, params = load(tmp_path / "a")
  for family, options in (
      ("llama", {"sliding_window": 4}), ("llama", {"attention_scale": 1.0}),
      ("gpt2", {}), ("bloom", {"positions": "alibi"}), ("t5", {})):
    changed = causal_lm.Config(**{**config.__dict__, **options})
    with pytest.raises(UserError, match="cannot say"):
      hugging_face.save(tmp_path / "b", params, changed, np.float32, family)
  with pytest.raises(UserError, match="No family .* such a model"):
    hugging_face.save(
        tmp_path / "b", params, causal_lm.Config(
            **{**config.__dict__, "attention_scale": 1.0}), np.float32)
  lacking = {**params, "token_embedder": {}}
  with pytest.raises(UserError, match="cannot be saved without 1 .*embedding"):
    hugging_face.save(tmp_path / "b", lacking, config, np.float32)
  other = causal_lm.Config(**{**config.__dict__, "mlp_dim": 9})
  with pytest.raises(UserError, match=r"\(24, 28\).*\(24, 9\)"):
    hugging_face.save(tmp_path / "b", params, other, np.float32)
  assert not os.path.exists(tmp_path / "b")
