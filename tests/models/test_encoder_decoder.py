"""Loss, scores and predictions against the original's, and closed forms.

The original's outputs (`shared_data`) are those of its own modules on T5X, in
float32 on a CPU with matmuls in the highest precision.
"""

import functools
import types

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import prompts
from prompt_tuning.decoding import beam
from prompt_tuning.models import encoder_decoder, losses, t5
from prompt_tuning.train import prompts as train_prompts

PROMPT = "encoder/prompt/prompt/prompt"


@pytest.fixture(autouse=True)
def highest_precision():
  with jax.default_matmul_precision("highest"):
    yield


# ---------------------------------------------------- the original's outputs


class Original:
  """The original's tiny model: its batch, parameters, and what it gave.

  Attributes:
    expected: name -> array.
    batch: as T5X names it.
    params: nested dict, the prompt among them.
  """

  def __init__(self, path):
    with np.load(path, allow_pickle=False) as file:
      self.expected = dict(file)
    self.batch = self._below("in/")
    self.params = flax.traverse_util.unflatten_dict(
        self._below("param/"), sep="/")

  def _below(self, prefix):
    return {
        name.removeprefix(prefix): array
        for name, array in self.expected.items() if name.startswith(prefix)}

  def model(self, **options):
    """Our model in its configuration."""
    config = t5.Config(
        vocab_size=128, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
        num_encoder_layers=2, num_decoder_layers=2)
    factory = functools.partial(
        train_prompts.Prompt, prompt=prompts.Prompt(length=5))
    vocabulary = types.SimpleNamespace(eos_id=1)
    return encoder_decoder.EncoderDecoderModel(
        t5.EncoderDecoder(config, factory), vocabulary, vocabulary, **options)


@pytest.fixture(scope="module")
def original(shared_data):
  return Original(shared_data / "original_outputs" / "prompt.npz")


def assert_relative(found, expected, tolerance=1e-5):
  """Relative to the largest number: sums of mixed signs cancel."""
  assert found.shape == expected.shape
  np.testing.assert_allclose(
      found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_parameters_have_the_originals_names_and_shapes(original):
  abstract, axes = original.model().abstract()
  shapes = jax.tree.map(lambda leaf: leaf.shape, abstract)
  assert shapes == jax.tree.map(lambda leaf: leaf.shape, original.params)
  flat = flax.traverse_util.flatten_dict(axes, sep="/")
  assert set(flat) == set(flax.traverse_util.flatten_dict(shapes, sep="/"))
  assert flat[PROMPT] == ("prompt", "prompt_embed")
  assert flat["token_embedder/embedding"] == ("vocab", "embed")
  assert flat["decoder/logits_dense/kernel"] == ("embed", "vocab")
  assert flat["encoder/relpos_bias/rel_embedding"] == (
      "heads", "relpos_buckets")
  layer = "decoder/layers_1/"
  assert flat[layer + "self_attention/key/kernel"] == ("embed", "joined_kv")
  assert flat[layer + "self_attention/out/kernel"] == ("joined_kv", "embed")
  assert flat[layer + "mlp/wi_1/kernel"] == ("embed", "mlp")
  assert flat[layer + "mlp/wo/kernel"] == ("mlp", "embed")
  assert flat[layer + "pre_mlp_layer_norm/scale"] == ("embed",)


def test_logits_loss_gradient_and_scores_are_the_originals(original):
  model, expected = original.model(z_loss=1e-4), original.expected

  @jax.jit
  def run(prompt, params):
    def loss(prompt):
      return model.loss({**params, "encoder": {
          **params["encoder"], "prompt": {"prompt": {"prompt": prompt}}}},
          original.batch)

    return (jax.value_and_grad(loss, has_aux=True)(prompt),
            model.logits(params, original.batch),
            model.score(params, original.batch))

  ((loss, sums), gradient), logits, scores = run(
      expected["param/" + PROMPT], original.params)
  assert_relative(loss, expected["loss"])
  assert_relative(sums["loss"], expected["loss"])
  assert sums["tokens"] == 9
  assert_relative(gradient, expected["grad/" + PROMPT])
  is_target = original.batch["decoder_target_tokens"] > 0
  assert logits.dtype == jnp.float32
  assert_relative(logits[is_target], expected["logits"][is_target])
  assert_relative(scores, expected["score_batch"])


@pytest.mark.parametrize("num_beams", [1, 4])
def test_decoded_beams_and_their_scores_are_the_originals(original, num_beams):
  model = original.model(decode_fn=functools.partial(
      beam.beam_search, num_beams=num_beams, alpha=0.6))
  tokens, scores = jax.jit(model.decodes)(original.params, original.batch)
  expected = original.expected
  # The original, T5X, has the best hypothesis last.
  np.testing.assert_array_equal(
      tokens, expected[f"decode/beam{num_beams}"][:, ::-1])
  assert_relative(scores, expected[f"decode/beam{num_beams}_scores"][:, ::-1])


# ----------------------------------------------------------------------- loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_cross_entropy_is_the_divergence_from_smoothed_targets(
    smoothing, z_loss):
  random = np.random.RandomState(0)
  logits = 3 * random.randn(2, 5, 7)
  targets = random.randint(0, 7, (2, 5))
  q = np.full((2, 5, 7), smoothing / 6)
  np.put_along_axis(q, targets[..., None], 1 - smoothing, -1)
  log_z = np.log(np.exp(logits).sum(-1))
  log_p = logits - log_z[..., None]
  log_q = np.log(np.where(q > 0, q, 1.0))
  loss, z_term = losses.cross_entropy(
      jnp.asarray(logits, jnp.float32), targets, smoothing, z_loss)
  np.testing.assert_allclose(z_term, z_loss * log_z**2, rtol=1e-5)
  np.testing.assert_allclose(
      loss, (q * (log_q - log_p)).sum(-1) + z_loss * log_z**2, rtol=1e-5,
      atol=1e-5)
  gradient = jax.grad(lambda x: losses.cross_entropy(
      x, targets, smoothing, z_loss)[0].sum())(jnp.asarray(logits))
  np.testing.assert_allclose(
      gradient,
      np.exp(log_p) * (1 + 2 * z_loss * log_z[..., None]) - q, atol=1e-6)


@pytest.fixture(scope="module")
def logits(tiny_t5):
  """Of the tiny model on its batch: [3, 4, 30]."""
  with jax.default_matmul_precision("highest"):
    return np.asarray(jax.jit(tiny_t5.model().logits)(
        tiny_t5.params(), tiny_t5.batch))


def test_sums_count_weighted_tokens(tiny_t5, logits):
  model = tiny_t5.model(z_loss=0.5)
  params = tiny_t5.params()
  targets = tiny_t5.batch["decoder_target_tokens"]
  weights = np.array([[1, 0, 2, 1], [1, 0.5, 0, 0], [0, 0, 0, 0]])
  # One right answer under a weight of 2, one under 0.
  targets = targets.copy()
  targets[0, 1:3] = np.argmax(logits[0, 1:3], -1)
  batch = {
      **tiny_t5.batch, "decoder_target_tokens": targets,
      "decoder_loss_weights": weights}
  total, sums = jax.jit(model.loss)(params, batch)
  loss, z_term = losses.cross_entropy(logits, targets, 0.0, 0.5)
  right = np.argmax(logits, -1) == targets
  assert sums["tokens"] == 5.5
  np.testing.assert_allclose(sums["correct"], (right * weights).sum())
  assert sums["correct"] >= 2
  np.testing.assert_allclose(total, (loss * weights).sum(), rtol=1e-6)
  np.testing.assert_allclose(sums["loss"], total)
  np.testing.assert_allclose(
      sums["z_loss"], (z_term * weights).sum(), rtol=1e-6)


def test_scores_are_log_probabilities_of_real_targets(tiny_t5, logits):
  # Neither smoothing, z-loss nor the size of a weight is part of a score.
  model = tiny_t5.model(z_loss=0.5, label_smoothing=0.1)
  params = tiny_t5.params()
  batch = {**tiny_t5.batch, "decoder_loss_weights":
           0.5 * tiny_t5.batch["decoder_loss_weights"]}
  logits = logits.astype(np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = [
      sum(log_probs[row, i, token] for i, token in enumerate(targets) if token)
      for row, targets in enumerate(batch["decoder_target_tokens"])]
  np.testing.assert_allclose(
      jax.jit(model.score)(params, batch), expected, rtol=1e-6)


# ------------------------------------------------------------------- decoding


def test_decoding_stacked_layers_gives_the_same(tiny_t5):
  found = []
  for scan_layers in (False, True):
    module = tiny_t5.module(scan_layers=scan_layers)
    params = tiny_t5.params()
    model = tiny_t5.model(module=module, decode_fn=functools.partial(
        beam.beam_search, num_beams=2))
    found.append(jax.jit(model.decodes)(
        tiny_t5.stacked(params) if scan_layers else params, tiny_t5.batch))
  np.testing.assert_array_equal(found[0][0], found[1][0])
  np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)
  # The two hypotheses of an example are not one.
  tokens = np.asarray(found[0][0])
  assert np.all(np.any(tokens[:, 0] != tokens[:, 1], axis=-1))


def test_decode_functions_are_given_what_they_take(tiny_t5):
  given = {}

  def search(step, cache, *, batch_size, max_length, eos_id, batch_axis):
    given.update(batch_size=batch_size, max_length=max_length, eos_id=eos_id,
                 batch_axis=batch_axis)
    logits, _ = step(jnp.zeros((6, 1), jnp.int32), jax.tree.map(
        lambda x: jnp.repeat(x, 2, 0) if x.ndim else x, cache))
    assert logits.shape == (6, 30)  # two hypotheses an example
    return jnp.arange(24).reshape(3, 2, 4), jnp.zeros((3, 2))

  def sample(step, cache, *, batch_size, max_length, eos_id, rng):
    given.update(batch_size=batch_size, max_length=max_length, eos_id=eos_id,
                 rng=rng)
    return jnp.zeros((3, 1, 4), jnp.int32), jnp.zeros((3, 1))

  params, rng = tiny_t5.params(), jax.random.key(0)
  model = tiny_t5.model(decode_fn=search)
  best = jax.jit(model.predict)(params, tiny_t5.batch, rng)
  np.testing.assert_array_equal(best, np.arange(24).reshape(3, 2, 4)[:, 0])
  common = {"batch_size": 3, "max_length": 4, "eos_id": 1}
  assert given == {**common, "batch_axis": 0}
  given.clear()
  model = tiny_t5.model(decode_fn=sample)
  jax.eval_shape(lambda rng: model.predict(params, tiny_t5.batch, rng), rng)
  assert given.pop("rng") is not None
  assert given == common


def test_abstract_computes_nothing():
  # 400 GB of parameters: they would not fit.
  config = t5.Config(
      vocab_size=250_112, embed_dim=65_536, num_heads=128, head_dim=128,
      mlp_dim=262_144, num_encoder_layers=1, num_decoder_layers=1)
  model = encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(config), None, None)
  shapes, axes = model.abstract()
  assert shapes["token_embedder"]["embedding"].shape == (250_112, 65_536)
  assert axes["token_embedder"]["embedding"] == ("vocab", "embed")
