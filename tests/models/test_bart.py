"""BART against Hugging Face's, and against itself computed in other ways."""

import functools
import importlib.util
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import errors, prompts
from prompt_tuning.checkpoints import base, hugging_face
from prompt_tuning.decoding import beam
from prompt_tuning.methods import prefix
from prompt_tuning.models import bart, encoder_decoder, losses
from prompt_tuning.train import prompts as train_prompts

CASES = ("plain", "scaled")


@pytest.fixture(autouse=True)
def highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


# ------------------------------------------------------- against Hugging Face


@pytest.fixture(scope="module")
def maker(expectations):
  """The script that wrote the expectations: same weights and inputs."""
  path = expectations.parent / "make_bart_expectations.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def load(folder):
  """(config, parameters) of a directory."""
  config = bart.Config(**hugging_face.HuggingFaceWeights(folder).config)
  one = jnp.ones((1, 2), jnp.int32)
  wanted = jax.eval_shape(lambda: bart.EncoderDecoder(config).init(
      jax.random.key(0), one, one, enable_dropout=False))["params"]
  return config, base.load_base(folder, wanted, np.float32)


def moved_right(config, targets):
  return np.pad(
      targets, ((0, 0), (1, 0)), constant_values=config.start_id)[:, :-1]


def our_outputs(folder, examples):
  """What `outputs_of_transformers` gives, by our module on the same files."""
  config, params = load(folder)
  inputs, targets = examples["inputs"], examples["targets"]
  prompt, real = examples["prompt"], targets != config.pad_id
  prompted = bart.EncoderDecoder(config, prompt_factory=functools.partial(
      train_prompts.Prompt, prompt=prompts.Prompt(len(prompt))))

  @jax.jit
  def run(params):
    found = {}
    for suffix, module in (
        ("", bart.EncoderDecoder(config)), ("_with_prompt", prompted)):
      logits = module.apply(
          {"params": params}, inputs, moved_right(config, targets),
          enable_dropout=False)
      loss, _ = losses.cross_entropy(logits, targets, 0.0, 0.0)
      found["logits" + suffix] = logits[real]
      found["loss" + suffix] = jnp.mean(loss[real])
    return found

  return run({
      **params,
      "encoder": {
          **params["encoder"], "prompt": {"prompt": {"prompt": prompt}}}})


def assert_equals_transformers(found, expected):
  for name in ("logits", "loss", "logits_with_prompt", "loss_with_prompt"):
    assert found[name].dtype == jnp.float32
    np.testing.assert_allclose(
        found[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
  # So that the comparison with a prompt is one: it does something.
  assert np.abs(
      expected["logits"] - expected["logits_with_prompt"]).max() > 1e-3


@pytest.fixture
def written(maker, expectations, tmp_path):
  """Writes a case's directory without torch; gives what it expects."""

  def write(case, **changes):
    with np.load(expectations / f"bart_{case}.npz") as file:
      expected = dict(file)
    tensors = maker.weights(
        json.loads(str(expected["shapes"])), int(expected["seed"]))
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads(str(expected["config"])) | changes))
    return expected, tensors

  return write


@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss_are_those_that_transformers_gave(
    case, tmp_path, maker, written):
  expected, _ = written(case)
  assert_equals_transformers(
      our_outputs(tmp_path, maker.batch(int(expected["seed"]))), expected)


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss_are_those_of_transformers(case, tmp_path, maker):
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  torch.set_num_threads(1)  # more would only wait for each other
  model = maker.model_of_transformers(case, seed=9)
  model.save_pretrained(tmp_path)
  examples = maker.batch(seed=9)
  assert_equals_transformers(
      our_outputs(tmp_path, examples),
      maker.outputs_of_transformers(model, examples))


# -------------------------------------------------------------------- decoding


def our_searches(folder, maker, examples):
  """What `searches_of_transformers` gives, by our whole model."""
  config, params = load(folder)
  inputs = examples["inputs"]
  batch = {"encoder_input_tokens": inputs, "decoder_target_tokens": np.zeros(
      (len(inputs), maker.NEW_TOKENS), np.int32)}
  names = {"length_penalty": "alpha", "bad_words_ids": "bad_words",
           "forced_bos_token_id": "forced_bos_id",
           "forced_eos_token_id": "forced_eos_id"}
  vocabulary = types.SimpleNamespace(eos_id=maker.EOS)
  found = {}
  for name, options in maker.SEARCHES.items():
    model = encoder_decoder.EncoderDecoderModel(
        bart.EncoderDecoder(config), vocabulary, vocabulary,
        decode_fn=functools.partial(
            beam.beam_search, rules="hugging_face",
            penalty=beam.hugging_face_length,
            **{names.get(k, k): v for k, v in options.items()}))
    tokens, scores = jax.jit(model.decodes)(params, batch)
    found |= {name: tokens[:, 0], f"{name}_scores": scores[:, 0]}
  return found


def assert_same_searches(found, expected):
  for name in ("e2e", "xsum"):
    np.testing.assert_array_equal(found[name], expected[name], name)
    np.testing.assert_allclose(
        found[f"{name}_scores"], expected[f"{name}_scores"], rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_beam_search_gives_what_transformers_gave(
    case, tmp_path, maker, written):
  expected, _ = written(case)
  assert_same_searches(
      our_searches(tmp_path, maker, maker.batch(int(expected["seed"]))),
      expected)


@pytest.mark.parity
@pytest.mark.parametrize("seed", [9, 10])
def test_beam_search_gives_what_transformers_gives(seed, tmp_path, maker):
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  torch.set_num_threads(1)
  model = maker.model_of_transformers("plain", seed)
  model.save_pretrained(tmp_path)
  examples = maker.batch(seed)
  assert_same_searches(
      our_searches(tmp_path, maker, examples),
      maker.searches_of_transformers(model, examples))


# ------------------------------------------------------------ reading, writing


def test_published_directories_have_no_bias_and_other_names(
    tmp_path, written):
  _, tensors = written("plain")
  _, whole = load(tmp_path)
  tensors.pop("final_logits_bias")
  tensors = {k.removeprefix("model."): v for k, v in tensors.items()}
  for side in ("encoder", "decoder"):
    tensors[f"{side}.embed_tokens.weight"] = tensors["shared.weight"]
    tensors[f"{side}.version"] = np.ones(1, np.float32)
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  _, params = load(tmp_path)
  assert np.any(whole["final_logits_bias"])
  whole["final_logits_bias"] = np.zeros((1, 40), np.float32)
  jax.tree.map(np.testing.assert_array_equal, params, whole)


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_is_what_was_read(case, tmp_path, written):
  _, tensors = written(case)
  config, params = load(tmp_path)
  hugging_face.save(tmp_path / "again", params, config, np.float32)
  again = safetensors.numpy.load_file(tmp_path / "again/model.safetensors")
  assert set(again) == set(tensors)
  for name, array in tensors.items():
    np.testing.assert_array_equal(again[name], array)
  content = json.loads((tmp_path / "again/config.json").read_text())
  stated = json.loads((tmp_path / "config.json").read_text())
  differing = {k for k, v in content.items() if stated.get(k) != v}
  assert differing <= {"architectures", "num_hidden_layers", "torch_dtype"}


@pytest.mark.parametrize("changes, message", [
    ({"decoder_ffn_dim": 8}, "decoder_ffn_dim 8: only 24 is implemented"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings False"),
    ({"normalize_before": True}, "normalize_before True"),
    ({"pad_token_id": -1}, "pad_token_id -1, which must be the number of a")])
def test_other_models_of_this_type_are_refused(
    tmp_path, written, changes, message):
  written("plain", **changes)
  with pytest.raises(errors.UserError, match=message):
    hugging_face.HuggingFaceWeights(tmp_path)


# ---------------------------------------------------------------- with itself


SIZES = {
    "vocab_size": 30, "embed_dim": 8, "num_heads": 2, "head_dim": 4,
    "mlp_dim": 10, "num_encoder_layers": 2, "num_decoder_layers": 2,
    "max_positions": 16}
INPUTS = np.array([
    [0, 9, 8, 29, 7, 2], [0, 12, 4, 2, 1, 1], [0, 2, 1, 1, 1, 1]])
TARGETS = np.random.RandomState(1).randint(3, 30, (3, 7))
DOORS = ("encoder_prefix_factory", "decoder_prefix_factory",
         "cross_prefix_factory")


def make(seed=0, doors=DOORS, **changes):
  """A module with prefixes, and random parameters of logits of about 1."""
  module = bart.EncoderDecoder(
      bart.Config(**SIZES | changes),
      **{door: functools.partial(prefix.Prefix, 3) for door in doors})
  shapes = jax.eval_shape(lambda: module.init(
      jax.random.key(0), INPUTS, TARGETS, enable_dropout=False))["params"]
  random = np.random.RandomState(seed)

  def draw(path, leaf):
    array = random.randn(*leaf.shape)
    if path[-1].key == "kernel":
      array /= np.sqrt(leaf.shape[-2])
    return array.astype(np.float32)

  return module, jax.tree_util.tree_map_with_path(draw, shapes)


def logits_of(module, params, inputs=INPUTS, targets=TARGETS, **options):
  return jax.jit(functools.partial(
      module.apply, enable_dropout=False, **options))(
          {"params": params}, inputs, targets)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_cached_decoding_equals_uncached(scan_layers):
  module, params = make(scan_layers=scan_layers)
  expected = logits_of(module, params)
  encoded = module.apply(
      {"params": params}, INPUTS, enable_dropout=False, method=module.encode)
  shapes = jax.eval_shape(lambda: module.init(
      jax.random.key(0), INPUTS, TARGETS, enable_dropout=False,
      decode=True))["cache"]

  @jax.jit
  def step(cache, tokens):
    logits, variables = module.apply(
        {"params": params, "cache": cache}, encoded, INPUTS, tokens,
        enable_dropout=False, decode=True, max_decode_length=7,
        mutable=["cache"], method=module.decode)
    return variables["cache"], logits

  cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  for i in range(7):
    cache, logits = step(cache, TARGETS[:, i:i + 1])
    np.testing.assert_allclose(
        logits[:, 0], expected[:, i], rtol=1e-5, atol=1e-5)


def stacked(params):
  """`layers_0`, `layers_1` of both sides as `layers`, leading axis L."""
  out = dict(params)
  for side in ("encoder", "decoder"):
    own = dict(params[side])
    each = [own.pop(name) for name in ("layers_0", "layers_1")]
    out[side] = own | {"layers": jax.tree.map(lambda *x: np.stack(x), *each)}
  return out


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scan_and_remat_do_not_change_the_numbers(remat):
  module, params = make()
  scanned, _ = make(scan_layers=True, remat=remat)
  np.testing.assert_allclose(
      logits_of(scanned, stacked(params)), logits_of(module, params),
      rtol=1e-5, atol=1e-5)


def with_kernel_rows(module, params, door):
  """One layer's attention by hand, in float64, with a prefix in front.

  Gives (what the module computes, what the formula gives) for the first
  layer's attention of that door.
  """
  path = {"encoder_prefix_factory": ("encoder", "attention", "prefix"),
          "decoder_prefix_factory": ("decoder", "self_attention", "prefix"),
          "cross_prefix_factory": (
              "decoder", "encoder_decoder_attention", "cross_prefix")}[door]
  side, name, own = path
  _, seen = module.apply(
      {"params": params}, INPUTS, TARGETS, enable_dropout=False,
      capture_intermediates=True, mutable=["intermediates"])
  seen = seen["intermediates"][side]["layers_0"][name]
  query, key, value = (
      np.asarray(seen[part]["__call__"][0], np.float64)
      for part in ("query", "key", "value"))
  keys, values = prefix.split(jnp.asarray(params[side][own]["prefix"]), 2, 2)

  def heads(x):
    return x.reshape(*x.shape[:2], 2, 4).transpose(0, 2, 1, 3)

  rows = len(INPUTS)
  key, value = (
      np.concatenate([np.repeat(front[0], rows, 0), heads(x)], axis=2)
      for front, x in ((keys, key), (values, value)))
  scores = heads(query) @ key.swapaxes(2, 3) / 2.0  # sqrt(D)
  count = query.shape[1]
  hidden = np.zeros(scores.shape, bool)
  if name == "self_attention":
    hidden[..., 3:] = ~np.tril(np.ones((count, count), bool))
  else:
    hidden[..., 3:] = (INPUTS == 1)[:, None, None]
  scores = np.where(hidden, -np.inf, scores)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  out = (weights @ value).transpose(0, 2, 1, 3).reshape(rows, count, 8)
  layer = params[side]["layers_0"][name]["out"]
  return (np.asarray(seen["__call__"][0]),
          out @ layer["kernel"].astype(np.float64) + layer["bias"])


@pytest.mark.parametrize("door", DOORS)
def test_prefixes_stand_before_the_keys_of_each_attention(door):
  module, params = make(doors=(door,))
  found, expected = with_kernel_rows(module, params, door)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_each_example_may_have_a_prefix_of_its_own():
  """[L, B, N, P, D]; oracle: the model with each of the shared ones."""
  module, _ = make(doors=())
  parts = np.random.RandomState(3).randn(6, 2, 3, 2, 3, 4).astype(np.float32)

  def run(rows):
    def factory(i):
      return lambda: lambda config, layers: (
          parts[i][:, rows], parts[i + 1][:, rows])

    doors = {door: factory(2 * i) for i, door in enumerate(DOORS)}
    plain, params = make(doors=())
    return logits_of(plain.clone(**doors), params)

  own = run(slice(None))
  for row in range(3):
    np.testing.assert_allclose(
        own[row], run(slice(row, row + 1))[row], rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing_and_zero_is_a_token():
  module, params = make()
  logits = logits_of(module, params)
  alone = logits_of(module, params, INPUTS[1:2, :4], TARGETS[1:2])
  np.testing.assert_allclose(logits[1], alone[0], rtol=1e-5, atol=1e-5)
  without = logits_of(module, params, INPUTS[1:2, 1:4], TARGETS[1:2])
  assert np.abs(alone - without).max() > 0.01


def test_prompts_are_told_what_is_padding():
  """Behind the text, whose `<s>` is 0: `suffix_prompt` counts tokens."""
  module, params = make(doors=())
  prompt = np.random.RandomState(5).randn(2, 8).astype(np.float32)
  params["encoder"]["prompt"] = {"prompt": {"prompt": prompt}}
  module = module.clone(prompt_factory=lambda: train_prompts.Prompt(
      prompts.Prompt(2), train_prompts.suffix_prompt))
  logits = logits_of(module, params)
  alone = logits_of(module, params, INPUTS[1:2, :4], TARGETS[1:2])
  np.testing.assert_allclose(logits[1], alone[0], rtol=1e-5, atol=1e-5)


def test_too_long_texts_are_refused():
  module, params = make(doors=())
  with pytest.raises(errors.UserError, match="17 tokens.*16 positions.*encod"):
    logits_of(module, params, np.ones((1, 17), np.int32), TARGETS[:1])
  with pytest.raises(errors.UserError, match="17 tokens.*16 positions.*decod"):
    logits_of(module, params, INPUTS[:1], np.ones((1, 17), np.int32))
