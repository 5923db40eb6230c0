"""T5 against Hugging Face's, and against itself computed in other ways."""

import functools
import importlib.util
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import prompts
from prompt_tuning.checkpoints import base, hugging_face
from prompt_tuning.models import losses, t5
from prompt_tuning.train import prompts as train_prompts

CASES = ("1_0", "1_1", "mt5", "byt5")


@pytest.fixture(autouse=True)
def highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


# ------------------------------------------------------- against Hugging Face


@pytest.fixture(scope="module")
def maker(expectations):
  """The script that wrote the expectations: same weights and inputs."""
  path = expectations.parent / "make_t5_expectations.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def our_outputs(folder, examples):
  """What `outputs_of_transformers` gives, by our module on the same files."""
  config = t5.Config(**hugging_face.HuggingFaceWeights(folder).config)
  inputs, targets = examples["inputs"], examples["targets"]
  decoder_inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  prompt = examples["prompt"]
  plain = t5.EncoderDecoder(config)
  prompted = t5.EncoderDecoder(config, prompt_factory=functools.partial(
      train_prompts.Prompt, prompt=prompts.Prompt(len(prompt))))
  wanted = jax.eval_shape(lambda: plain.init(
      jax.random.key(0), inputs, targets, enable_dropout=False))["params"]
  params = base.load_base(folder, wanted, np.float32)

  @jax.jit
  def run(params):
    found = {}
    for suffix, module in (("", plain), ("_with_prompt", prompted)):
      logits = module.apply(
          {"params": params}, inputs, decoder_inputs, enable_dropout=False)
      loss, _ = losses.cross_entropy(logits, targets, 0.0, 0.0)
      found["logits" + suffix] = logits[targets > 0]
      found["loss" + suffix] = jnp.mean(loss[targets > 0])
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
  assert abs(expected["loss"] - expected["loss_with_prompt"]) > 0.01


@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss_are_those_that_transformers_gave(
    case, tmp_path, maker, expectations):
  with np.load(expectations / f"t5_{case}.npz", allow_pickle=False) as file:
    expected = dict(file)
  seed = int(expected["seed"])
  safetensors.numpy.save_file(
      maker.weights(json.loads(str(expected["shapes"])), seed),
      tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(str(expected["config"]))
  assert_equals_transformers(
      our_outputs(tmp_path, maker.batch(seed)), expected)


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


# ------------------------------------------- against itself, the plain module

PROMPT = ("encoder", "prompt", "prompt", "prompt")


def with_prompt(params, prompt):
  return {**params, "encoder": {
      **params["encoder"], "prompt": {"prompt": {"prompt": prompt}}}}


def random_key(seed):
  """For dropout: JAX's default generator takes ten times longer to compile."""
  return jax.random.key(seed, impl="unsafe_rbg")


@functools.cache
def outputs(scan_layers=False, remat="none", dropout=False):
  """((loss, logits), prompt gradient) of one set of parameters.

  There are no logits with dropout, to save compiling them.
  """
  tiny = outputs.tiny_t5
  module = tiny.module(
      scan_layers=scan_layers, remat=remat, dropout_rate=0.2)
  model = tiny.model(module=module)
  params = tiny.params()
  prompt = params["encoder"]["prompt"]["prompt"]["prompt"]
  if scan_layers:
    params = tiny.stacked(params)

  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(prompt, params, rng):
    params = with_prompt(params, prompt)
    logits = () if dropout else model.logits(params, tiny.batch)
    return model.loss(params, tiny.batch, rng)[0], logits

  return jax.device_get(jax.jit(loss)(
      prompt, params, random_key(3) if dropout else None))


@pytest.fixture(autouse=True, scope="module")
def _tiny(tiny_t5):
  outputs.tiny_t5 = tiny_t5
  yield
  outputs.cache_clear()


def encode(module, params, tokens):
  return jax.jit(functools.partial(
      module.apply, enable_dropout=False, method=module.encode))(
          {"params": params}, tokens)


def assert_close(found, expected):
  jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
      found, expected)


@pytest.mark.parametrize("scan_layers, remat", [
    (False, "dots"), (True, "none"), (True, "dots")])
def test_scan_and_remat_do_not_change_the_numbers(scan_layers, remat):
  assert_close(outputs(scan_layers, remat), outputs())


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_what_is_recomputed_draws_the_same_dropout(scan_layers):
  """The test above for remat="full", which recomputes the masks too."""
  dropped = outputs(scan_layers, dropout=True)
  assert_close(outputs(scan_layers, "full", dropout=True), dropped)
  assert abs(dropped[0][0] - outputs()[0][0]) > 0.01


def test_scanned_parameters_are_stacked(tiny_t5):
  module = tiny_t5.module(scan_layers=True, num_encoder_layers=3)
  shapes, axes = tiny_t5.model(module=module).abstract()
  kernel = ("mlp", "wi_0", "kernel")
  for side, length in (("encoder", 3), ("decoder", 2)):
    shape, names = shapes[side]["layers"], axes[side]["layers"]
    for key in kernel:
      shape, names = shape[key], names[key]
    assert shape.shape == (length, 8, 10)
    assert names == ("layers", "embed", "mlp")


def test_unknown_remat(tiny_t5):
  with pytest.raises(ValueError, match="'some'.*'none', 'dots', 'full'"):
    tiny_t5.model(module=tiny_t5.module(remat="some")).abstract()


@pytest.mark.parametrize("scan_layers", [False, True])
def test_dropout_is_drawn_from_the_rng_alone(tiny_t5, scan_layers):
  module = tiny_t5.module(scan_layers=scan_layers, dropout_rate=0.2)
  params = tiny_t5.params()
  if scan_layers:
    params = tiny_t5.stacked(params)
  run = jax.jit(lambda rng: module.apply(
      {"params": params}, tiny_t5.batch["encoder_input_tokens"],
      enable_dropout=True, rngs={"dropout": rng}, method=module.encode))
  first = run(random_key(0))
  np.testing.assert_array_equal(first, run(random_key(0)))
  assert not np.array_equal(first, run(random_key(1)))
  # At the very end too, and with one mask for all positions of an example.
  dropped = np.asarray(first) == 0
  np.testing.assert_array_equal(
      dropped, np.broadcast_to(dropped[:, :1], dropped.shape))
  assert 0 < dropped.mean() < 0.6


def test_bfloat16_activations_are_close_to_float32(tiny_t5):
  params, batch = tiny_t5.params(), tiny_t5.batch
  module = tiny_t5.module(dtype="bfloat16")  # as gin gives it
  encoded = jax.eval_shape(functools.partial(
      encode, module, params, batch["encoder_input_tokens"]))
  assert encoded.dtype == jnp.bfloat16
  found = jax.jit(tiny_t5.model(module=module).logits)(params, batch)
  assert found.dtype == jnp.float32
  (_, exact), _ = outputs()
  # A rounding to bfloat16 is off by at most 2^-9 of a value. Along the longest
  # path there are about 20 in each of 4 layers; as a random walk sqrt(80) of
  # them make 2 % of logits of about 1, and the largest of 360 logits is off by
  # 3 to 4 times as much.
  error = np.asarray(found) - exact
  spread = np.std(exact)
  assert np.sqrt(np.mean(error**2)) < 0.02 * spread
  assert np.abs(error).max() < 0.08 * spread
  assert np.abs(error).max() > 1e-4  # it did compute in bfloat16


# ------------------------------------------------------------------- decoding


@pytest.mark.parametrize("scan_layers", [False, True])
def test_cached_decoding_equals_uncached(tiny_t5, scan_layers):
  module = tiny_t5.module(scan_layers=scan_layers)
  params, batch = tiny_t5.params(), tiny_t5.batch
  if scan_layers:
    params = tiny_t5.stacked(params)
  # Longer than the last bucket of positions.
  targets = np.random.RandomState(1).randint(2, 30, (3, 12))
  inputs = batch["encoder_input_tokens"]
  expected = jax.jit(functools.partial(module.apply, enable_dropout=False))(
      {"params": params}, inputs, targets)
  encoded = encode(module, params, inputs)

  @jax.jit
  def step(cache, tokens):
    logits, variables = module.apply(
        {"params": params, "cache": cache}, encoded, inputs, tokens,
        enable_dropout=False, decode=True, max_decode_length=12,
        mutable=["cache"], method=module.decode)
    return variables["cache"], logits

  cache = tiny_t5.empty_cache(module, inputs, 12)
  for i in range(12):
    cache, logits = step(cache, targets[:, i:i + 1])
    assert logits.shape == (3, 1, 30)
    np.testing.assert_allclose(
        logits[:, 0], expected[:, i], rtol=1e-5, atol=1e-5)


def test_a_step_needs_the_length_of_the_cache(tiny_t5):
  module, params = tiny_t5.module(), tiny_t5.params()
  inputs = tiny_t5.batch["encoder_input_tokens"]
  cache = tiny_t5.empty_cache(module, inputs, 4)
  with pytest.raises(ValueError, match="needs max_decode_length"):
    jax.eval_shape(lambda: module.apply(
        {"params": params, "cache": cache}, jnp.zeros((3, 9, 8)), inputs,
        inputs[:, :1], enable_dropout=False, decode=True, mutable=["cache"],
        method=module.decode))


# ---------------------------------------------------------- masks and the door


class Recorder(nn.Module):
  """A prompt of two zeros that sows what it is called with."""

  @nn.compact
  def __call__(self, x, x_embed):
    self.sow("calls", "tokens", x)
    self.sow("calls", "embedded", x_embed)
    return jnp.pad(x_embed, ((0, 0), (2, 0), (0, 0)))


def test_the_prompt_module_sees_tokens_and_embeddings_of_the_encoder(tiny_t5):
  module = t5.EncoderDecoder(t5.Config(**tiny_t5.config), Recorder)
  params = tiny_t5.params(tiny_t5.module(prompt=False))
  tokens = tiny_t5.batch["encoder_input_tokens"]
  run = functools.partial(
      jax.jit(module.apply, static_argnames=(
          "enable_dropout", "method", "mutable")),
      {"params": params}, enable_dropout=False, mutable="calls")
  encoded, variables = run(tokens, method="encode")
  assert encoded.shape == (3, 2 + 6, 8)
  calls = variables["calls"]["encoder"]["prompt"]
  (seen,), (seen_embedded,) = calls["tokens"], calls["embedded"]
  np.testing.assert_array_equal(seen, tokens)
  np.testing.assert_array_equal(
      seen_embedded, params["token_embedder"]["embedding"][tokens])
  logits, variables = run(
      encoded, tokens, tiny_t5.batch["decoder_input_tokens"], method="decode")
  assert logits.shape == (3, 4, 30)
  assert not variables  # the decoder's embeddings get no prompt


def test_padding_is_not_seen_and_the_prompt_is(tiny_t5):
  module, params = tiny_t5.module(), tiny_t5.params()
  inputs = tiny_t5.batch["encoder_input_tokens"]
  encoded = encode(module, params, inputs)
  decode = jax.jit(lambda encoded: module.apply(
      {"params": params}, encoded, inputs,
      tiny_t5.batch["decoder_input_tokens"], enable_dropout=False,
      method=module.decode))
  expected = np.asarray(decode(encoded))
  is_seen = np.pad(inputs > 0, ((0, 0), (3, 0)), constant_values=True)
  for position in range(is_seen.shape[1]):
    found = np.asarray(decode(encoded.at[:, position].add(1.0)))
    changed = np.any(found != expected, axis=(1, 2))
    np.testing.assert_array_equal(changed, is_seen[:, position])


def test_more_padding_changes_nothing(tiny_t5):
  params, batch = tiny_t5.params(), tiny_t5.batch
  logits = jax.jit(tiny_t5.model().logits)
  padded = {name: np.pad(x, ((0, 0), (0, 2))) for name, x in batch.items()}
  (_, expected), _ = outputs()
  np.testing.assert_allclose(
      logits(params, padded)[:, :4], expected, atol=1e-6)


@pytest.mark.parametrize("packing", [
    "encoder_segment_ids", "decoder_segment_ids", "encoder_positions",
    "decoder_positions"])
def test_packed_examples_are_refused(tiny_t5, packing):
  module, tokens = tiny_t5.module(), np.ones((1, 4), np.int32)
  calls = [(module.__call__, (tokens, tokens))]
  if packing == "encoder_segment_ids":
    calls.append((module.encode, (tokens,)))
  if packing != "encoder_positions":
    calls.append((module.decode, (jnp.zeros((1, 7, 8)), tokens, tokens)))
  for method, arguments in calls:
    with pytest.raises(ValueError, match="Packed.*not supp.*pack = False"):
      jax.eval_shape(functools.partial(
          module.init, enable_dropout=False, method=method,
          **{packing: tokens}), jax.random.key(0), *arguments)
