"""Loading base weights of any format into the model's tree.

Oracles: the arrays that were written; the real T5X checkpoint evaluated by the
module; and, for memory, the kernel's count of resident pages.
"""

import json
import logging
import os
import pathlib
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import checkpoints
from prompt_tuning.checkpoints import base, hugging_face
from prompt_tuning.errors import UserError
from prompt_tuning.formats import card
from prompt_tuning.models import causal_lm, t5

BFLOAT16 = np.dtype(jnp.bfloat16)
QUERY = "encoder/layers_0/attention/query/kernel"
TINY = t5.Config(
    vocab_size=32128, embed_dim=4, num_heads=2, head_dim=2, mlp_dim=8,
    num_encoder_layers=2, num_decoder_layers=2, relpos_num_buckets=4)


def flat(tree):
  return flax.traverse_util.flatten_dict(tree, sep="/")


def halves(shape):
  return tuple(-(-n // 2) for n in shape)


@pytest.fixture(params=["t5x", "hugging_face"])
def written(request, tmp_path, small_t5, write_t5x):
  params = small_t5.params()
  if request.param == "t5x":
    write_t5x(tmp_path / "c", flat(params), chunks=halves)
  else:
    hugging_face.save(
        tmp_path / "c", params, small_t5.config, np.float32, "t5")
  return tmp_path / "c", params


def assert_same(got, want, dtype=np.float32):
  got, want = flat(got), flat(want)
  assert list(got) == list(want)
  for name in want:
    assert isinstance(got[name], jax.Array)
    assert got[name].dtype == dtype
    np.testing.assert_array_equal(
        np.asarray(got[name]), want[name].astype(dtype), name)


def test_the_real_checkpoint_evaluates(shared_data):
  folder = shared_data / "t5x" / "test_t5_1_1_tiny" / "checkpoint_3"
  module = t5.EncoderDecoder(TINY)
  tokens = jnp.array([[5, 6, 1, 0]])
  abstract = jax.eval_shape(lambda: module.init(
      jax.random.key(0), tokens, tokens, enable_dropout=False))["params"]
  params = base.load_base(folder, abstract)
  assert len(jax.tree.leaves(params)) == 52
  logits = module.apply(
      {"params": params}, tokens, tokens, enable_dropout=False)
  assert logits.shape == (1, 4, 32128)
  assert np.isfinite(logits).all()
  assert np.std(logits) > 0


@pytest.mark.parametrize("dtype", [None, np.float32, jnp.bfloat16])
def test_dtype(written, dtype, small_t5):
  path, params = written
  got = base.load_base(path, small_t5.abstract(), dtype)
  assert_same(got, params, dtype or np.float32)


def test_each_leaf_has_its_own_dtype_when_none_is_asked(written, small_t5):
  path, params = written
  abstract = small_t5.abstract()
  abstract["encoder"]["encoder_norm"]["scale"] = jax.ShapeDtypeStruct(
      (8,), jnp.bfloat16)
  got = base.load_base(path, abstract)
  assert got["encoder"]["encoder_norm"]["scale"].dtype == jnp.bfloat16
  assert got["decoder"]["decoder_norm"]["scale"].dtype == jnp.float32


def test_stacked_layers(written, small_t5):
  path, params = written
  got = base.load_base(path, small_t5.abstract(scan_layers=True))
  query = got["decoder"]["layers"]["self_attention"]["query"]["kernel"]
  np.testing.assert_array_equal(query, np.stack([
      params["decoder"][f"layers_{i}"]["self_attention"]["query"]["kernel"]
      for i in range(3)]))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("axes", [
    (None, None), ("data", "model"), (("data", "model"), None),
    (None, "model")])
@pytest.mark.parametrize("block_bytes", [36, 1 << 20])
def test_straight_to_a_sharding(
    written, monkeypatch, axes, scan, block_bytes, small_t5):
  monkeypatch.setattr(checkpoints, "BLOCK_BYTES", block_bytes)
  path, params = written
  mesh = jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4])

  def sharded(leaf):
    spec = list(axes if leaf.ndim > 1 else (None,))
    spec = [None] * (leaf.ndim - len(spec)) + spec
    for i, axis in enumerate(spec):
      parts = 4 if isinstance(axis, tuple) else 2
      if leaf.shape[i] % parts:
        spec[i] = None
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=jax.sharding.NamedSharding(
            mesh, jax.sharding.PartitionSpec(*spec)))

  abstract = jax.tree.map(sharded, small_t5.abstract(scan_layers=scan))
  got = base.load_base(path, abstract)
  for name, leaf in flat(abstract).items():
    assert flat(got)[name].sharding == leaf.sharding, name
  whole = base.load_base(path, small_t5.abstract(scan_layers=scan))
  assert_same(got, jax.tree.map(np.asarray, whole))


def test_shares_of_one_buffer_survive_donation(tmp_path, small_t5, write_t5x):
  """Replicas on CPU devices share memory: no update may write through it."""
  params = small_t5.params()
  write_t5x(tmp_path / "c", flat(params))
  mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
  replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
      small_t5.abstract())
  got = base.load_base(tmp_path / "c", abstract)
  plus_one = jax.jit(
      lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  for leaf, want in zip(
      jax.tree.leaves(plus_one(got)), jax.tree.leaves(params)):
    for shard in leaf.addressable_shards:
      np.testing.assert_array_equal(shard.data, want + 1)


def test_on_a_cpu_the_buffer_is_not_copied(
    tmp_path, monkeypatch, small_t5, write_t5x):
  write_t5x(tmp_path / "c", flat(small_t5.params()))
  places = []
  empty = base._empty

  def recorded(*arguments):
    places.append(empty(*arguments))
    return places[-1]

  monkeypatch.setattr(base, "_empty", recorded)
  got = base.load_base(tmp_path / "c", small_t5.abstract())
  assert {x.unsafe_buffer_pointer() for x in jax.tree.leaves(got)} == {
      x.ctypes.data for x in places}


def test_one_array(written):
  path, params = written
  want = params["encoder"]["layers_0"]["attention"]["query"]["kernel"]
  for name in (QUERY, "/" + QUERY, "target/" + QUERY):
    np.testing.assert_array_equal(base.read_variable(path, name), want)
  half = base.read_variable(path, QUERY, jnp.bfloat16)
  np.testing.assert_array_equal(half, want.astype(BFLOAT16))
  with pytest.raises(UserError, match="nearest names.*token_embedder/embed"):
    base.read_variable(path, "token_embedder/embeddings")
  np.testing.assert_array_equal(
      base.read_embedding_table(path), params["token_embedder"]["embedding"])


def test_fingerprint_is_the_same_in_all_formats_and_dtypes(
    tmp_path, small_t5, write_t5x):
  params = small_t5.params()
  halved = jax.tree.map(lambda x: x.astype(BFLOAT16), params)
  write_t5x(tmp_path / "a", flat(params))
  write_t5x(tmp_path / "b", flat(halved), chunks=halves)
  small_t5.save(tmp_path / "c")  # the same values again
  small_t5.save(tmp_path / "d", dtype=BFLOAT16)
  table = params["token_embedder"]["embedding"]
  prints = {base.fingerprint(tmp_path / name) for name in "abcd"}
  assert prints == {card.fingerprint(table), card.fingerprint(
      jnp.asarray(table, jnp.bfloat16))}
  assert len(prints) == 1
  table[0, 0] += 1
  assert card.fingerprint(table) not in prints


# ------------------------------------------------------------------- bad input


def test_no_base_there(tmp_path, small_t5, write_t5x):
  with pytest.raises(UserError, match="no checkpoint folder"):
    base.open_base(tmp_path / "absent")
  with pytest.raises(UserError, match="is no checkpoint.*config.json"):
    base.open_base(tmp_path)
  with pytest.raises(UserError, match="another machine"):
    base.open_base("gs://t5-data/pretrained_models/t5x/t5_1_1_small")
  write_t5x(tmp_path / "checkpoint_5", flat(small_t5.params()))
  with pytest.raises(UserError, match="give the folder of one step"):
    base.open_base(tmp_path)


def test_another_width_names_paths_and_both_shapes(written, small_t5):
  path, _ = written
  abstract = small_t5.abstract(embed_dim=12)
  with pytest.raises(
      UserError, match=r"\(.*8.*\) in the checkpoint and \(.*12.*\) in the "
      r"model.*and \d+ more"):
    base.load_base(path, abstract)
  abstract = small_t5.abstract(mlp_dim=12, scan_layers=True)
  with pytest.raises(UserError, match=r"layers_0/mlp/.*\(8, 10\).*\(8, 12\)"):
    base.load_base(path, abstract)


def test_fewer_and_more_layers(written, small_t5):
  path, _ = written
  with pytest.raises(UserError, match="decoder/layers_2.*NUM_DECODER_LAYERS"):
    base.load_base(path, small_t5.abstract(num_decoder_layers=2))
  with pytest.raises(UserError, match=r"lacks 9 .*encoder/layers_2/.*6 more"):
    base.load_base(path, small_t5.abstract(num_encoder_layers=3))


@pytest.mark.parametrize("scan", [False, True])
def test_what_the_file_lacks_is_named(written, scan, small_t5):
  path, _ = written
  abstract = small_t5.abstract(mlp_activations=("relu",), scan_layers=scan)
  with pytest.raises(UserError, match="lacks 5 .*layers_0/mlp/wi/kernel"):
    base.load_base(path, abstract)


def test_what_is_not_used_is_said_once(tmp_path, caplog, small_t5, write_t5x):
  params = small_t5.params()
  extra = {"decoder/prompt/prompt/prompt": np.ones((2, 8), np.float32),
           "encoder/layers_0/prompt/prompt/prompt": np.ones((2, 8), np.float32),
           "odd/one": np.ones(3, np.float32), "odd/two": np.ones(3, np.float32)}
  write_t5x(tmp_path / "c", {**flat(params), **extra})
  with caplog.at_level(logging.WARNING):
    assert_same(
        base.load_base(tmp_path / "c", small_t5.abstract()), params)
  assert [r.getMessage().partition(" has ")[2] for r in caplog.records] == [
      "2 arrays that the model does not use: odd/one, odd/two."]


# ---------------------------------------------------------------------- memory


_MEASURE = """
import json, sys
import flax, jax, numpy as np
from prompt_tuning.checkpoints import base

def resident(field):
  with open("/proc/self/status") as status:
    return next(int(line.split()[1]) * 1024 for line in status
                if line.startswith(field))

path, dtype = sys.argv[1:]
jax.block_until_ready(jax.device_put(np.ones(8)))
arrays = base.open_base(path).arrays
abstract = flax.traverse_util.unflatten_dict(arrays, sep="/")
with open("/proc/self/clear_refs", "w") as control:
  control.write("5")  # forget the peak so far
before = resident("VmRSS")
loaded = jax.block_until_ready(
    base.load_base(path, abstract, jax.numpy.dtype(dtype)))
size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
print(json.dumps([(resident("VmHWM") - before) / size, size]))
"""


def peak(path, dtype):
  """Peak of resident memory while loading / bytes of what is loaded."""
  environment = {
      **os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(
          pathlib.Path(base.__file__).parents[2])}
  done = subprocess.run(
      [sys.executable, "-c", _MEASURE, str(path), dtype], env=environment,
      capture_output=True, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])


_SIZES = {
    "vocab_size": 32128, "embed_dim": 512, "num_layers": 8, "num_heads": 8,
    "head_dim": 64, "mlp_dim": 2048, "norm": "layer_norm",
    "mlp_activations": ("gelu",), "qkv_bias": True, "attention_out_bias": True,
    "mlp_bias": True}
FUSED = {
    "gpt2": causal_lm.Config(**_SIZES, positions="learned"),
    "bloom": causal_lm.Config(
        **_SIZES, positions="alibi", embedding_norm=True)}


def random_causal_lm(config):
  rng = np.random.default_rng(0)
  abstract = jax.eval_shape(lambda: causal_lm.CausalLM(config).init(
      jax.random.key(0), jnp.ones((1, 4), jnp.int32)))["params"]
  return jax.tree.map(
      lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="resident memory is read from Linux's /proc")
@pytest.mark.parametrize(
    "kind", ["t5x", "orbax", "hugging_face", "gpt2", "bloom"])
def test_peak_memory_is_at_most_1_3_of_the_weights(
    tmp_path, kind, small_t5, write_t5x):
  path = tmp_path / "checkpoint_1"
  if kind in FUSED:  # queries, keys and values in one tensor
    params = random_causal_lm(FUSED[kind])
    hugging_face.save(path, params, FUSED[kind], np.float32)
    assert base.open_base(path).family == kind
  else:
    small = {
        **small_t5.config, "vocab_size": 32128, "embed_dim": 512,
        "num_heads": 6, "head_dim": 64, "mlp_dim": 1024,
        "num_encoder_layers": 8, "num_decoder_layers": 8}
    params = small_t5.params(small)
  if kind == "t5x":
    write_t5x(path, flat(params))
  elif kind == "orbax":
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.PyTreeCheckpointer() as saver:
      saver.save(path / "state", {"target": params})
  elif kind == "hugging_face":
    hugging_face.save(path, params, small, np.float32, "t5")
  for dtype, size in (("float32", 4), ("bfloat16", 2)):
    ratio, loaded = peak(path, dtype)
    print(f"{kind} {dtype}: {loaded / 1e6:.0f} MB, peak {ratio:.2f} x")
    assert loaded == size * sum(x.size for x in jax.tree.leaves(params))
    assert ratio <= 1.3
