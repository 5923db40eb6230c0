"""Base checkpoints to read: a T5X writer, and a small T5 of each version."""

import gzip
import importlib.util
import itertools
import json
import os

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning.checkpoints import hugging_face
from prompt_tuning.models import t5


def write_zarr(folder, array, chunks, fill=None, compress=True):
  """One array as zarr v2: chunk files are full, padded at the edges."""
  os.makedirs(folder)
  name = "bfloat16" if array.dtype == jnp.bfloat16 else array.dtype.str
  metadata = {
      "chunks": list(chunks), "dtype": name, "shape": list(array.shape),
      "compressor": {"id": "gzip", "level": 1} if compress else None}
  with open(os.path.join(folder, ".zarray"), "w") as file:
    json.dump({**metadata, "fill_value": fill, "filters": None, "order": "C",
               "zarr_format": 2}, file)
  grid = [range(-(-s // c)) for s, c in zip(array.shape, chunks)]
  for place in itertools.product(*grid):
    chunk = np.zeros(chunks, array.dtype)
    part = array[tuple(
        slice(p * c, (p + 1) * c) for p, c in zip(place, chunks))]
    chunk[tuple(slice(n) for n in part.shape)] = part
    path = os.path.join(folder, ".".join(map(str, place)) or "0")
    with gzip.open(path, "wb", 1) if compress else open(path, "wb") as file:
      file.write(chunk.tobytes())
  return metadata


def write_t5x(folder, arrays, version=3, step=7, chunks=None, bucket=False,
              **zarr):
  """A T5X checkpoint: vectors inline, matrices as zarr folders.

  Args:
    folder: to make.
    arrays: path -> array.
    version: of the layout; 0 is a bare tree.
    step: training step.
    chunks: shape -> chunk shape; whole arrays if None.
    bucket: refer to zarr folders as if they were on Google's storage.
    **zarr: for `write_zarr`.
  """
  os.makedirs(folder)
  tree = {}
  for name, array in arrays.items():
    leaf = array
    if array.ndim > 1:
      path = "target." + name.replace("/", ".")
      metadata = write_zarr(
          os.path.join(folder, path), array,
          chunks(array.shape) if chunks else array.shape, **zarr)
      store = {"driver": "gfile", "path": path}
      if bucket:
        store = {"driver": "gcs", "bucket": "b", "path": f"a/b/{path}/"}
      leaf = {"driver": "zarr", "kvstore": store, "metadata": metadata}
    tree[name] = leaf
  target = flax.traverse_util.unflatten_dict(tree, sep="/")
  state = {
      "state": {"step": np.int32(step), "param_states": {"a": {"v": None}}},
      "target": target}
  content = {"version": version, "optimizer": state} if version else state
  with open(os.path.join(folder, "checkpoint"), "wb") as file:
    file.write(flax.serialization.msgpack_serialize(content))


class SmallT5:
  """Sizes that all differ, so that a mistaken axis cannot pass."""

  config = {
      "vocab_size": 40, "embed_dim": 8, "num_heads": 2, "head_dim": 3,
      "mlp_dim": 10, "num_encoder_layers": 2, "num_decoder_layers": 3,
      "mlp_activations": ("gelu", "linear"), "tie_logits": False,
      "relpos_num_buckets": 6, "relpos_max_distance": 20}
  config_1_0 = {**config, "mlp_activations": ("relu",), "tie_logits": True}

  @staticmethod
  def abstract(config=config, **changes):
    """The parameters' shapes, as nested dict."""
    module = t5.EncoderDecoder(t5.Config(**{**config, **changes}))
    tokens = jnp.ones((1, 4), jnp.int32)
    return jax.eval_shape(lambda: module.init(
        jax.random.key(0), tokens, tokens, enable_dropout=False))["params"]

  @classmethod
  def params(cls, config=config, dtype=np.float32, **changes):
    """Random parameters, as nested dict of NumPy arrays."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(dtype),
        cls.abstract(config, **changes))

  @classmethod
  def save(cls, folder, config=config, dtype=np.float32, **changes):
    """Writes random parameters as a Hugging Face directory; gives them."""
    params = cls.params(config, dtype, **changes)
    hugging_face.save(folder, params, config, dtype, "t5")
    return params

  @staticmethod
  def flat(tree):
    """Path -> leaf."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture(scope="session")
def causal_lm_maker(expectations):
  """The script that wrote the expectations of all decoder-only families."""
  path = expectations.parent / "make_causal_lm_expectations.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="session")
def write_family(causal_lm_maker, expectations):
  """Writes the directory of one of the maker's cases, without torch.

  Returns (folder, case, **config.json's changes) -> what transformers gave.
  """

  def write(folder, case, **changes):
    with np.load(
        expectations / f"causal_lm_{case}.npz", allow_pickle=False) as file:
      expected = dict(file)
    tensors, content = causal_lm_maker.stored(
        case, causal_lm_maker.weights(
            json.loads(str(expected["shapes"])), int(expected["seed"])),
        json.loads(str(expected["config"])))
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    return expected

  return write


@pytest.fixture(scope="session")
def small_t5():
  return SmallT5


@pytest.fixture(scope="session", name="write_zarr")
def _write_zarr():
  return write_zarr


@pytest.fixture(scope="session", name="write_t5x")
def _write_t5x():
  return write_t5x
