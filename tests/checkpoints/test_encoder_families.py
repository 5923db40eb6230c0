"""BERT, RoBERTa and CodeSage: weights and config.json, read and written.

Oracles: transformers, whose hidden states are committed for one seed and
computed live for another; for CodeSage, which transformers has no code of, its
formula in NumPy's float64; closed forms of the poolings.
"""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.special

from prompt_tuning.checkpoints import base, base_config, families, hugging_face
from prompt_tuning.checkpoints.families import config_json
from prompt_tuning.errors import UserError
from prompt_tuning.models import text_encoder

CASES = ("bert", "bert_tanh_gelu", "roberta")


@pytest.fixture(scope="module")
def maker(expectations):
  path = expectations.parent / "make_text_encoder_expectations.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def write(maker, expectations):
  """Writes the directory of a case; gives what transformers gave."""

  def write(folder, case, rename=lambda name: name, **changes):
    with np.load(
        expectations / f"text_encoder_{case}.npz", allow_pickle=False) as file:
      expected = dict(file)
    drawn = maker.weights(
        json.loads(str(expected["shapes"])), int(expected["seed"]))
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(
        {rename(k): v for k, v in drawn.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(
        json.loads(str(expected["config"])) | changes))
    return expected

  return write


def load(folder, **options):
  """(module, parameters) of a directory."""
  config = text_encoder.Config(**base.open_base(folder).config, **options)
  module = text_encoder.TextEncoder(config)
  one = jnp.ones((1, 1), jnp.int32)
  wanted = jax.eval_shape(module.init, jax.random.key(0), one, one)["params"]
  return module, base.load_base(folder, wanted, np.float32)


def states(folder, ids, visible, **options):
  module, params = load(folder, **options)
  with jax.default_matmul_precision("highest"):
    return np.asarray(jax.jit(lambda params: module.apply(
        {"params": params}, ids, visible, method=module.hidden))(params))


def close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


# ------------------------------------------------------------------- the states


@pytest.mark.parametrize("case", CASES)
def test_states_are_those_that_transformers_gave(
    case, tmp_path, write, maker):
  expected = write(tmp_path, case)
  ids, visible = maker.tokens(int(expected["seed"]), case == "roberta")
  assert 0.5 < np.std(expected["states"]) < 2
  close(states(tmp_path, ids, visible)[visible], expected["states"])
  # Scanned and unrolled layers are the same, and so is either padding's side.
  left = [np.stack([np.roll(row, -seen.sum() % len(row)) for row, seen in zip(
      array, visible)]) for array in (ids, visible)]
  close(states(tmp_path, *left, scan_layers=True)[left[1]],
        expected["states"])


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_states_are_those_of_transformers(case, tmp_path, maker):
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  torch.set_num_threads(1)  # more would only wait for each other
  model = maker.model_of_transformers(case, seed=99)
  model.save_pretrained(tmp_path, max_shard_size="6KB")
  assert (tmp_path / "model.safetensors.index.json").exists()
  ids, visible = maker.tokens(99, model.config.pad_token_id)
  theirs = maker.states_of_transformers(model, ids, visible)
  close(states(tmp_path, ids, visible)[visible], theirs[visible])


@pytest.mark.parity
@pytest.mark.parametrize("case, auto_class", [
    ("bert", "AutoModelForPreTraining"), ("bert", "AutoModelForMaskedLM"),
    ("roberta", "AutoModelForSequenceClassification"),
    ("roberta", "AutoModelForMaskedLM")])
def test_heads_are_left_alone(case, auto_class, tmp_path, maker):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  model = maker.model_of_transformers(case, 7, auto_class)
  model.save_pretrained(tmp_path)
  ids, visible = maker.tokens(7, model.config.pad_token_id)
  theirs = maker.states_of_transformers(model.base_model, ids, visible)
  close(states(tmp_path, ids, visible)[visible], theirs[visible])


def test_names_of_tensorflows_norms(tmp_path, write, maker):
  def old(name):
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return "bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")

  expected = write(tmp_path, "bert", old)
  ids, visible = maker.tokens(int(expected["seed"]), 0)
  close(states(tmp_path, ids, visible)[visible], expected["states"])


# --------------------------------------------------------------------- CodeSage

CODESAGE = {
    "architectures": ["CodeSage"], "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5, "hidden_size": 24, "num_attention_heads": 3,
    "num_hidden_layers": 2, "intermediate_size": 28,
    "max_position_embeddings": 20, "vocab_size": 41}


def codesage_shapes():
  shapes = {"wte.weight": (41, 24), "wpe.weight": (20, 24),
            "ln_f.weight": (24,), "ln_f.bias": (24,)}
  for n in range(2):
    for name, shape in (
        ("attn.c_attn", (24, 72)), ("attn.c_proj", (24, 24)),
        ("mlp.c_fc", (24, 28)), ("mlp.c_proj", (28, 24)), ("ln_1", (24,)),
        ("ln_2", (24,))):
      shapes[f"h.{n}.{name}.weight"] = shape
      shapes[f"h.{n}.{name}.bias"] = shape[-1:]
  return shapes


def codesage_in_float64(drawn, ids, length):
  """What CodeSage says of one unpadded text: its states, and their vector."""
  w = {name: array.astype(np.float64) for name, array in drawn.items()}

  def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]

  def project(x, name):
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

  def gelu(x):
    return 0.5 * x * (1 + np.tanh(
        np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

  x = w["wte.weight"][ids[:length]] + w["wpe.weight"][:length]
  for n in range(2):
    query, key, value = (
        part.reshape(length, 3, 8).swapaxes(0, 1) for part in np.split(
            project(norm(x, f"h.{n}.ln_1"), f"h.{n}.attn.c_attn"), 3, -1))
    scores = query @ key.swapaxes(1, 2) / np.sqrt(8)
    mixed = scipy.special.softmax(scores, -1) @ value
    mixed = mixed.swapaxes(0, 1).reshape(length, 24)
    x = x + project(mixed, f"h.{n}.attn.c_proj")
    h = gelu(project(norm(x, f"h.{n}.ln_2"), f"h.{n}.mlp.c_fc"))
    x = x + project(h, f"h.{n}.mlp.c_proj")
  x = norm(x, "ln_f")
  return x, x.mean(0) / np.linalg.norm(x.mean(0))


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_codesage_is_its_formula(tmp_path, maker, prefix):
  drawn = maker.weights(codesage_shapes(), 5)
  safetensors.numpy.save_file(
      {prefix + name: array for name, array in drawn.items()}
      | {"lm_head.weight": np.zeros((41, 24), np.float32)},
      tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(CODESAGE))
  assert base.open_base(tmp_path).family == "codesage"
  ids, visible = maker.tokens(5, 0)
  module, params = load(tmp_path)
  module = module.clone(pooling=families.codesage.POOLING)
  with jax.default_matmul_precision("highest"):
    ours, vectors = jax.jit(lambda params: [
        module.apply({"params": params}, ids, visible, method=method)
        for method in (module.hidden, module.__call__)])(params)
  for row, seen, our, vector in zip(ids, visible, ours, vectors):
    theirs, pooled = codesage_in_float64(drawn, row, seen.sum())
    close(our[:seen.sum()], theirs)
    close(vector, pooled)


# ----------------------------------------------------------------- the poolings


def test_poolings_are_their_closed_forms():
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(3, 5, 4)).astype(np.float32)
  texts = [hidden[0, :5], hidden[1, :2], hidden[2, 1:4]]
  mask = np.array([[1] * 5, [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]], bool)
  for name, closed in (
      ("first_token", lambda x: x[0]), ("last_token", lambda x: x[-1]),
      ("mean", lambda x: x.mean(0)),
      ("normalized_mean", lambda x: x.mean(0) / np.linalg.norm(x.mean(0)))):
    got = text_encoder.pooled(hidden, mask, name)
    np.testing.assert_allclose(
        got, np.stack([closed(x.astype(np.float64)) for x in texts]),
        atol=1e-6)
  with pytest.raises(UserError, match="'max'; it can be first_token"):
    text_encoder.pooled(hidden, mask, "max")


# ------------------------------------------------------ config.json and writing


@pytest.mark.parametrize("case", [*CASES, "codesage"])
def test_what_is_saved_is_read(case, tmp_path, write, maker):
  if case == "codesage":
    (tmp_path / "a").mkdir()
    safetensors.numpy.save_file(
        maker.weights(codesage_shapes(), 5),
        tmp_path / "a" / "model.safetensors")
    (tmp_path / "a" / "config.json").write_text(json.dumps(CODESAGE))
  else:
    write(tmp_path / "a", case)
  _, params = load(tmp_path / "a")
  weights = base.open_base(tmp_path / "a")
  hugging_face.save(
      tmp_path / "b", params, weights.config, np.float32, weights.family)
  again = base.open_base(tmp_path / "b")
  assert again.config == weights.config
  assert again.family == weights.family
  jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "b")[1], params)


def config_of(**content):
  family = families.of_config(content, "config.json")
  return family.read_config(config_json.ConfigJson("config.json", content))


def test_sizes_that_config_json_leaves_out():
  sizes = {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 41,
           "num_attention_heads": 3, "intermediate_size": 28}
  bert = config_of(model_type="bert", **sizes)
  assert (bert["max_positions"], bert["num_token_types"]) == (512, 2)
  roberta = config_of(model_type="roberta", pad_token_id=1, **sizes)
  assert (roberta["max_positions"], roberta["position_offset"]) == (512, 2)
  for model_type, name, value in (
      ("bert", "position_embedding_type", "relative_key"),
      ("roberta", "is_decoder", True), ("bert", "hidden_act", "swish"),
      ("roberta", "max_position_embeddings", 2),
      ("roberta", "num_attention_heads", 5)):
    with pytest.raises(UserError, match=f"{name} {value!r}"):
      config_of(model_type=model_type, **sizes | {name: value})


def test_other_architectures_are_refused_by_name():
  with pytest.raises(UserError, match="None: only t5.*roberta, codesage"):
    config_of(architectures=["Sage"])
  with pytest.raises(UserError, match="'distilbert': only .*bert"):
    config_of(model_type="distilbert")


def test_an_encoder_is_no_decoder_only_model(tmp_path, write):
  write(tmp_path, "roberta")
  with pytest.raises(UserError, match="not a decoder-only model"):
    base_config.causal_lm_config(tmp_path)


def test_codesage_is_published_as_a_pickle(tmp_path):
  """Its conversion must not run the code that is beside it."""
  (tmp_path / "config.json").write_text(json.dumps(CODESAGE))
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(UserError, match="save_file.torch.load.*weights_only"):
    base.open_base(tmp_path)


def test_texts_longer_than_the_positions(tmp_path, write):
  write(tmp_path, "roberta")
  module, params = load(tmp_path)
  run = functools.partial(module.apply, {"params": params})
  assert run(np.ones((1, 20), int), np.ones((1, 20), bool)).shape == (1, 24)
  with pytest.raises(UserError, match="21 tokens.*20 positions"):
    run(np.ones((1, 21), int), np.ones((1, 21), bool))
