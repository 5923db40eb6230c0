"""Llama weights from GGUF files.

Oracles: files written by the `gguf` package from arrays in Hugging Face's
order, reordered as llama.cpp's converter does it; transformers, which reads
the same file of real weights.
"""

import re
import tracemalloc
import types

import flax
import gguf as package
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import checkpoints
from prompt_tuning.checkpoints import base, gguf
from prompt_tuning.errors import UserError
from prompt_tuning.formats import gguf as gguf_files
from prompt_tuning.models import causal_lm, decoder_only, rotary
from prompt_tuning.train import (
  exporting,
  optimizers,
  settings,
  setup,
  sharding,
)
from prompt_tuning.train import step as step_lib

Kind = package.GGMLQuantizationType

# All widths differ: H 32, N * D 48, K * D 24, F 64, V 40.
SIZES = {
    "block_count": 2, "embedding_length": 32, "feed_forward_length": 64,
    "attention.head_count": 4, "attention.head_count_kv": 2,
    "attention.key_length": 12, "attention.value_length": 12,
    "context_length": 99}
CONFIG = {
    "vocab_size": 40, "embed_dim": 32, "num_layers": 2, "num_heads": 4,
    "num_kv_heads": 2, "head_dim": 12, "mlp_dim": 64, "max_positions": 99,
    "positions": "rotary", "rope_theta": 500.0, "rope_scaling": None,
    "norm": "rms_norm", "norm_epsilon": 1e-6,
    "mlp_activations": ("silu", "linear"), "tie_logits": False,
    "sliding_window": None, "qkv_bias": False, "attention_out_bias": False,
    "mlp_bias": False}

# GGUF's name in a layer, ours, [out, in] as Hugging Face has it.
LAYER = {
    "attn_q": ("attention/query", (48, 32)),
    "attn_k": ("attention/key", (24, 32)),
    "attn_v": ("attention/value", (24, 32)),
    "attn_output": ("attention/out", (32, 48)),
    "ffn_gate": ("mlp/wi_0", (64, 32)),
    "ffn_up": ("mlp/wi_1", (64, 32)),
    "ffn_down": ("mlp/wo", (32, 64)),
    "attn_norm": ("pre_attention_layer_norm", (32,)),
    "ffn_norm": ("pre_mlp_layer_norm", (32,))}


def permute(weight, heads):
  """What llama.cpp's converter does to rows of queries and keys."""
  halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
  return halves.swapaxes(1, 2).reshape(weight.shape)


def llama(biases=(), tied=False):
  """GGUF's tensors by name, and ours by path."""
  draw = np.random.default_rng(0)
  theirs, ours = {}, {}

  def add(name, path, shape, heads=None, transposed=True):
    value = draw.normal(size=shape).astype(np.float32)
    theirs[name] = permute(value, heads) if heads else value
    ours[path] = value.T if transposed else value

  add("token_embd.weight", "token_embedder/embedding", (40, 32),
      transposed=False)
  add("output_norm.weight", "decoder/decoder_norm/scale", (32,))
  if not tied:
    add("output.weight", "decoder/logits_dense/kernel", (40, 32))
  for n in range(2):
    for name, (path, shape) in LAYER.items():
      heads = {"attn_q": 4, "attn_k": 2}.get(name)
      leaf = "scale" if len(shape) == 1 else "kernel"
      path = f"decoder/layers_{n}/{path}"
      add(f"blk.{n}.{name}.weight", f"{path}/{leaf}", shape, heads)
      if name in biases:
        add(f"blk.{n}.{name}.bias", f"{path}/bias", shape[:1], heads)
  return theirs, ours


def write(path, tensors, kinds=None, architecture="llama", **changes):
  """Writes a GGUF file; `changes` are of its metadata, None removes."""
  values = {
      **SIZES, "rope.freq_base": 500.0,
      "attention.layer_norm_rms_epsilon": 1e-6, **changes}
  writer = package.GGUFWriter(path, architecture)
  for name, value in values.items():
    add = {int: writer.add_uint32, float: writer.add_float32,
           str: writer.add_string, list: writer.add_array}.get(type(value))
    if add:
      add(f"llama.{name}", value)
  for name, value in tensors.items():
    kind = (kinds or {}).get(name)
    if kind is None:
      writer.add_tensor(name, value)
    else:
      writer.add_tensor(
          name, package.quants.quantize(value, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def read_all(weights):
  out = {k: np.empty(v.shape, v.dtype) for k, v in weights.arrays.items()}
  for name, array in out.items():
    weights.read_into(name, array)
  return out


def assert_same(got, want):
  assert set(got) == set(want)
  for name in want:
    np.testing.assert_array_equal(got[name], want[name], name)


@pytest.mark.parametrize("block_bytes", [1, 3000, 1 << 20])
def test_what_is_written_is_read(tmp_path, monkeypatch, block_bytes):
  monkeypatch.setattr(checkpoints, "BLOCK_BYTES", block_bytes)
  theirs, ours = llama()
  weights = base.open_base(write(tmp_path / "m.gguf", theirs))
  assert isinstance(weights, gguf.GgufWeights)
  assert weights.family == "llama"
  assert weights.config == CONFIG
  causal_lm.Config(**weights.config)
  assert_same(read_all(weights), ours)
  assert {x.dtype for x in weights.arrays.values()} == {jnp.dtype("float32")}


def test_the_engine_loads_it(tmp_path):
  theirs, ours = llama(tied=True)
  path = write(tmp_path / "m.gguf", theirs)
  config = causal_lm.Config(**base.open_base(path).config)
  model = causal_lm.CausalLM(config)
  abstract = jax.eval_shape(
      lambda: model.init(jax.random.key(0), jnp.ones((1, 4), jnp.int32)))
  loaded = base.load_base(path, abstract["params"])
  assert_same(flax.traverse_util.flatten_dict(loaded, sep="/"), ours)
  assert len(base.fingerprint(path)) == 64


@pytest.mark.parity
def test_a_tuned_llama_gives_transformers_logits(tmp_path):
  """From a GGUF file, all of it trained, in the folder that a run leaves."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  path = str(write(tmp_path / "m.gguf", llama()[0]))
  model = decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(causal_lm.Config(**base.open_base(path).config)),
      types.SimpleNamespace(eos_id=1, vocab_size=40))
  mesh = jax.sharding.Mesh(
      np.reshape(jax.devices()[:1], (1, 1, 1)), sharding.MESH_AXES)
  weights = setup.prepare(
      model, settings.RestoreCheckpointConfig(path), [".*"], mesh,
      jax.random.PRNGKey(0))
  start = np.asarray(weights.trainable["token_embedder"]["embedding"])
  optimizer = optimizers.AdamW(0.01)
  shapes = setup.state_shapes(weights, optimizer, mesh)
  state = setup.initial_state(weights, optimizer, shapes)
  batch = model.features.padded([[3, 4, 5, 6]] * 2, [[7, 8, 1]] * 2, 4, 3)
  state, _ = step_lib.compiled_update(
      step_lib.make_train_step(model, optimizer), shapes)(
          state, {}, batch, jax.random.PRNGKey(0))
  params = state.trainable
  assert np.abs(params["token_embedder"]["embedding"] - start).max() > 5e-3
  exporting.write_model(
      str(tmp_path), model, params, weights, settings.SaveCheckpointConfig())
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path / "hugging_face").eval()
  tokens = np.random.default_rng(0).integers(2, 40, (2, 9))
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens)).logits.numpy()
  batch = {"decoder_input_tokens": tokens.astype(np.int32),
           "decoder_target_positions": np.tile(np.arange(9), (2, 1))}
  with jax.default_matmul_precision("highest"):
    found = model.logits(params, batch)
  np.testing.assert_allclose(
      found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_tied_and_biases(tmp_path):
  biases = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down")
  theirs, ours = llama(biases, tied=True)
  weights = gguf.GgufWeights(write(tmp_path / "m.gguf", theirs))
  assert weights.config == {
      **CONFIG, "tie_logits": True, "qkv_bias": True, "mlp_bias": True}
  assert_same(read_all(weights), ours)


@pytest.mark.parametrize("kind, dtype, error", [
    (Kind.F16, np.float16, 2e-3), (Kind.BF16, jnp.bfloat16, 2e-2),
    (Kind.Q8_0, np.float32, 2e-2), (Kind.Q5_0, np.float32, 0.2),
    (Kind.Q5_1, np.float32, 0.2), (Kind.Q4_0, np.float32, 0.4),
    (Kind.Q4_1, np.float32, 0.4)])
def test_quantised(tmp_path, kind, dtype, error):
  theirs, ours = llama()
  kinds = {name: kind for name, value in theirs.items()
           if value.ndim == 2 and value.shape[1] % 32 == 0}
  weights = gguf.GgufWeights(write(tmp_path / "m.gguf", theirs, kinds))
  got = read_all(weights)
  for name in ("decoder/layers_1/attention/query/kernel",
               "decoder/layers_0/mlp/wi_1/kernel", "token_embedder/embedding"):
    assert got[name].dtype == dtype
    np.testing.assert_allclose(
        got[name].astype(np.float32), ours[name], atol=error)
    assert kind == Kind.F16 or np.any(got[name] != ours[name])
  assert got["decoder/layers_0/attention/out/kernel"].dtype == np.float32


@pytest.mark.parity
@pytest.mark.parametrize("kind", [
    Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_XS])
def test_k_quants_are_transformers(tmp_path, kind):
  torch = pytest.importorskip("torch")
  theirs = pytest.importorskip("transformers.integrations.gguf.dequant")
  draw = np.random.default_rng(0)
  stored = draw.integers(
      0, 256, (48, package.GGML_QUANT_SIZES[kind][1]), np.uint8)
  writer = package.GGUFWriter(tmp_path / "m.gguf", "llama")
  writer.add_tensor("w", stored, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with np.errstate(all="ignore"):  # some of these scales are infinite
    got = gguf_files.GgufFile(tmp_path / "m.gguf").rows("w", 8, 40)
  want = theirs.dequantize(
      torch.from_numpy(stored[8:40]), int(kind)).numpy().reshape(got.shape)
  np.testing.assert_allclose(got, want, rtol=1e-6, equal_nan=True)


def test_peak_memory_is_at_most_1_3_of_the_weights(tmp_path):
  theirs, _ = llama(tied=True)
  theirs["token_embd.weight"] = np.ones((400_000, 32), np.float32)
  path = write(
      tmp_path / "m.gguf", theirs, {"token_embd.weight": Kind.Q8_0})
  del theirs
  abstract = flax.traverse_util.unflatten_dict(
      base.open_base(path).arrays, sep="/")
  jax.block_until_ready(jax.device_put(np.ones(8)))
  tracemalloc.start()
  try:
    loaded = base.load_base(path, abstract)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak <= 1.3 * sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))


def rotations(factor, low=1.0, high=4.0, original=8192, theta=500000.0, dim=12):
  """`rope_freqs.weight` as llama.cpp's converter computes it."""
  factors = []
  for rate in theta ** (-np.arange(0, dim, 2) / dim):
    wave = 2 * np.pi / rate
    if wave < original / high:
      factors.append(1)
    elif wave > original / low:
      factors.append(factor)
    else:
      smooth = (original / wave - low) / (high - low)
      factors.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(factors, np.float32)


@pytest.mark.parametrize("metadata, factors, want", [
    ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, None,
     rotary.RopeScaling("linear", 4.0)),
    ({"rope.scale_linear": 2.0}, None, rotary.RopeScaling("linear", 2.0)),
    ({"rope.scaling.type": "none"}, None, None),
    ({}, np.ones(6, np.float32), None),
    ({}, rotations(8.0), rotary.RopeScaling("llama3", 8.0)),
    ({}, rotations(32.0), rotary.RopeScaling("llama3", 32.0)),
])
def test_stretched_positions(tmp_path, metadata, factors, want):
  theirs, ours = llama()
  if factors is not None:
    theirs["rope_freqs.weight"] = factors
  path = write(
      tmp_path / "m.gguf", theirs, **{"rope.freq_base": 500000.0, **metadata})
  weights = gguf.GgufWeights(path)
  assert weights.config["rope_scaling"] == want
  assert set(weights.arrays) == set(ours)


@pytest.mark.parametrize("metadata, factors, what", [
    ({"rope.scaling.type": "yarn"}, None, "by 'yarn'"),
    ({}, rotations(8.0, original=4096), "neither Llama 3.1"),
    ({}, np.full(5, 2, np.float32), "neither Llama 3.1"),
])
def test_unknown_stretching(tmp_path, metadata, factors, what):
  theirs, _ = llama()
  if factors is not None:
    theirs["rope_freqs.weight"] = factors
  path = write(
      tmp_path / "m.gguf", theirs, **{"rope.freq_base": 500000.0, **metadata})
  with pytest.raises(UserError, match=what):
    gguf.GgufWeights(path)


def lose(name):
  return lambda tensors: tensors.pop(name)


def reshape(name, shape):
  return lambda tensors: tensors.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize("change, metadata, what", [
    (lambda t: None, {"expert_count": 8}, "expert_count, which is not impl"),
    (lambda t: None, {"block_count": None}, "block_count None"),
    (lambda t: None, {"block_count": 3}, r"lacks 9 .* 3 layers .*blk\.2\."),
    (lambda t: None, {"block_count": (1 << 32) - 1}, "4294967295 layers"),
    (lambda t: None, {"block_count": 1}, r"9 tensors that no .*blk\.1\.attn_k"),
    (lambda t: None, {"attention.head_count": [4, 4]}, "as an array"),
    (lambda t: None, {"feed_forward_length": 0}, "feed_forward_length 0"),
    (lambda t: None, {"rope.dimension_count": 6}, "dimension_count 6 .* 12"),
    (lambda t: None, {"attention.value_length": 8}, "value_length 8 .* 12"),
    (lambda t: None, {"attention.head_count": 2},
     r"blk\.0\.attn_q\.weight of shape \(48, 32\).*\(24, 32\)"),
    (lose("token_embd.weight"), {}, "no embedding table"),
    (lose("output_norm.weight"), {}, r"lacks 1 .*output_norm\.weight"),
    (lose("blk.1.ffn_up.weight"), {}, r"lacks 1 .*blk\.1\.ffn_up\.weight"),
    (reshape("blk.1.attn_q_norm.weight", 12), {}, "attn_q_norm"),
    (reshape("blk.0.attn_v.bias", 24), {}, r"lacks 5 .*blk\.0\.attn_q\.bias"),
    (reshape("output.weight", (41, 32)), {}, r"\(41, 32\).*\(40, 32\)"),
    (reshape("output.weight", (2, 20, 32)), {}, r"output.*\(40, 32\)"),
])
def test_what_is_no_such_llama(tmp_path, change, metadata, what):
  theirs, _ = llama()
  change(theirs)
  path = write(tmp_path / "odd.gguf", theirs, **metadata)
  with pytest.raises(UserError, match=f"odd.gguf .*{what}"):
    gguf.GgufWeights(path)


def test_other_architectures_are_named(tmp_path):
  theirs, _ = llama()
  path = write(tmp_path / "m.gguf", theirs, architecture="qwen2")
  with pytest.raises(UserError, match="'qwen2': of GGUF files only 'llama'"):
    base.open_base(path)
  with pytest.raises(UserError, match=r"cannot read .*none\.gguf"):
    base.open_base(tmp_path / "none.gguf")


# ------------------------------------------------------------ real weights


def test_smollm2(smollm2):
  weights = base.open_base(smollm2)
  assert weights.config == {
      **CONFIG, "vocab_size": 49152, "embed_dim": 576, "num_layers": 30,
      "num_heads": 9, "num_kv_heads": 3, "head_dim": 64, "mlp_dim": 1536,
      "max_positions": 8192, "rope_theta": 100000.0, "norm_epsilon": 1e-5,
      "tie_logits": True}
  assert sum(np.prod(x.shape) for x in weights.arrays.values()) == 134_515_008


HUGGING_FACE = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm"}


@pytest.fixture(scope="module")
def oracle(smollm2):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  return transformers.AutoModelForCausalLM.from_pretrained(
      smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32).eval()


@pytest.mark.slow
@pytest.mark.parity
def test_every_weight_is_transformers(smollm2, oracle):
  state = oracle.state_dict()
  names = {path: f".{HUGGING_FACE[name]}.weight"
           for name, (path, _) in LAYER.items()}
  weights = base.open_base(smollm2)
  for path, array in read_all(weights).items():
    if layer := re.match(r"decoder/layers_(\d+)/(.*)/", path):
      name = f"model.layers.{layer[1]}{names[layer[2]]}"
    else:
      name = {"token_embedder/embedding": "model.embed_tokens.weight",
              "decoder/decoder_norm/scale": "model.norm.weight"}[path]
    array = array.T if path.endswith("kernel") else array
    np.testing.assert_array_equal(array, state[name].numpy(), path)


@pytest.mark.slow
@pytest.mark.parity
def test_smollm2_gives_transformers_next_tokens(smollm2, oracle, shared_data):
  import torch

  from prompt_tuning.data import tokenizers

  lines = (shared_data / "sst2" / "dev.tsv").read_text().splitlines()
  vocabulary = tokenizers.GgufTokenizer(smollm2)
  prompts = [
      vocabulary.encode_inputs(f"Review: {line.split(chr(9))[0]}\nSentiment:")
      for line in lines[:50]]
  weights = base.open_base(smollm2)
  params = base.load_base(smollm2, flax.traverse_util.unflatten_dict(
      weights.arrays, sep="/"))
  model = causal_lm.CausalLM(causal_lm.Config(**weights.config))
  lengths = np.array([len(ids) for ids in prompts])
  tokens = np.zeros((50, lengths.max()), np.int32)
  for row, ids in zip(tokens, prompts):
    row[:len(ids)] = ids
  visible = np.arange(lengths.max()) < lengths[:, None]
  apply = jax.jit(lambda p, tokens, visible, last: model.apply(
      {"params": p}, tokens, visible=visible, target_positions=last))
  logits = np.concatenate([
      apply(params, tokens[i:i + 10], visible[i:i + 10],
            lengths[i:i + 10, None] - 1) for i in range(0, 50, 10)])
  with torch.no_grad():
    want = np.stack([
        oracle(torch.tensor([ids]), logits_to_keep=1).logits[0].numpy()
        for ids in prompts])
  np.testing.assert_array_equal(logits.argmax(-1), want.argmax(-1))
  np.testing.assert_allclose(logits, want, atol=2e-3)
