"""Labels against each other.

Oracles: closed forms in float64, finite differences, and the original's models
under T5X, see `make_original_expectations.py`.
"""

import importlib.util
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import prompts
from prompt_tuning.data import features, token_ids
from prompt_tuning.data import valid_labels as labels_lib
from prompt_tuning.models import (
  causal_lm,
  decoder_only,
  encoder_decoder,
  losses,
  t5,
  valid_labels,
)
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import state as state_lib

PATH = "encoder/prompt/prompt/prompt"
VOCABULARY = types.SimpleNamespace(eos_id=1)


# ------------------------------------------------------------ scores and losses


def by_hand(scores, right, hinge):
  """In float64, one example after the other."""
  found = []
  for row, gold in zip(np.float64(scores), right):
    wrong = max(score for i, score in enumerate(row) if i != gold)
    found.append(max(0.0, hinge + wrong - row[gold]))
  return np.array(found)


@pytest.mark.parametrize("hinge", [0.0, 0.2, 3.0])
def test_the_perceptrons_loss(hinge):
  draw = np.random.default_rng(0)
  scores = draw.normal(size=(50, 4)).astype(np.float32)
  right = draw.integers(0, 4, 50)
  np.testing.assert_allclose(
      valid_labels.perceptron_loss(scores, right, hinge),
      by_hand(scores, right, hinge), atol=1e-6)


def test_a_hinge_moves_what_wins_by_less():
  """The original's code has 0 here, for its maximum includes the right one."""
  gradient = jax.grad(lambda s: valid_labels.perceptron_loss(
      s, jnp.array([1]), 0.2)[0])
  np.testing.assert_array_equal(
      gradient(jnp.array([[-1.1, -1.0, -2.0]])), [[1.0, -1.0, 0.0]])
  assert not gradient(jnp.array([[-1.3, -1.0, -2.0]])).any()


@pytest.mark.parametrize("length_normalize", [False, True])
def test_scores_of_labels(length_normalize):
  draw = np.random.default_rng(0)
  found, weights = -draw.uniform(size=(2, 3, 4)), np.zeros((2, 3, 4), np.int32)
  weights[0, 0, :2] = weights[0, 1, :4] = weights[1, :, :1] = 1  # [0, 2]: none
  scores = valid_labels.label_scores(
      found.astype(np.float32), weights, length_normalize)
  count = np.array([[2, 4, 1], [1, 1, 1]]) if length_normalize else 1
  wanted = (found * weights).sum(-1) / count
  assert scores[0, 2] < -1e8  # never the prediction, never a reason for a loss
  wanted[0, 2] = scores[0, 2]
  np.testing.assert_allclose(scores, wanted, rtol=1e-6)
  assert np.isfinite(valid_labels.perceptron_loss(
      scores[:1], np.array([0]), 0.2)).all()


@pytest.mark.parametrize("length", [5, 700])  # of one chunk, and of two
def test_log_likelihoods_and_their_gradient(length):
  """Oracle: JAX's log-softmax of all logits at once."""
  draw = np.random.default_rng(0)
  kernel = draw.normal(size=(4, 11)).astype(np.float32)
  hidden = draw.normal(size=(1, length, 4)).astype(np.float32)
  targets = draw.integers(0, 11, (1, length))
  weights = draw.normal(size=(1, length)).astype(np.float32)

  def ours(kernel, hidden):
    return (losses.log_likelihoods(
        lambda params, x, rng: x @ params, kernel, hidden, targets)
        * weights).sum()

  def plain(kernel, hidden):
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(hidden @ kernel), targets[..., None], -1)[..., 0]
    return (picked * weights).sum()

  for ours_of, plain_of in zip(
      jax.value_and_grad(ours, (0, 1))(kernel, hidden),
      jax.value_and_grad(plain, (0, 1))(kernel, hidden)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-4, atol=1e-4), ours_of, plain_of)


def test_chunks_are_two_at_700(monkeypatch):
  monkeypatch.setattr(losses, "_LOGITS", 0)
  _, _, count = losses._chunks(
      lambda params, x, rng: x @ params, np.ones((4, 11)), np.ones((1, 700, 4)),
      None)
  assert count == 2


# ----------------------------------------------------------- T5: the original's


@pytest.fixture(scope="module")
def maker():
  path = pathlib.Path(__file__).parents[1] / "make_original_expectations.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def batch(maker):
  """Two texts with three labels, and a third that only fills the batch."""
  labels = tuple(tuple(int(i) for i in row if i) for row in maker.LABEL_TOKENS)
  inputs = [[int(i) for i in row if i]
            for row in maker.BATCH["encoder_input_tokens"]]
  targets = [labels[i] for i in (*maker.LABEL_INDEX, 2)]
  plain = features.EncoderDecoder().padded(inputs, targets, 7, 4)
  plain["decoder_loss_weights"][2] = 0
  return plain | labels_lib.batch_features(
      [(examples_of(labels, targets), i) for i in range(3)], 4, 3)


def examples_of(labels, targets):
  rows = token_ids.Rows(np.int32)
  for ids in targets:
    rows.append(ids)
  arrays = dict(zip(("targets", "targets_offsets"), rows.flat()))
  arrays["inputs_offsets"] = arrays["targets_offsets"]
  return token_ids.Examples(
      "task", "train", arrays, {}, "", labels=labels)


def t5_model(maker, kind, **options):
  config = t5.Config(**{
      {"NUM_EMBEDDINGS": "vocab_size"}.get(name, name.lower()): value
      for name, value in maker.SIZES.items()})
  return getattr(valid_labels, f"{kind}EncoderDecoderModel")(
      t5.EncoderDecoder(
          config, lambda: train_prompts.Prompt(prompts.Prompt(3))),
      VOCABULARY, VOCABULARY, z_loss=1e-4, **options)


def drawn(maker, model):
  return {path: maker.draw(path, leaf.shape) for path, leaf in
          state_lib.flatten(model.abstract()[0]).items()}


def run(maker, model, batch):
  """Loss, its sums, scores and the gradient of the prompt."""
  params = drawn(maker, model)

  def loss(prompt):
    whole = state_lib.unflatten({**params, PATH: prompt})
    total, sums = model.loss(whole, batch)
    return total, (sums, model.label_scores(whole, batch))

  (total, (sums, scores)), gradient = jax.jit(
      jax.value_and_grad(loss, has_aux=True))(params[PATH])
  return total, sums, scores, gradient


KINDS = {
    "cross_entropy": ("CrossEntropy", {"length_normalize": True}),
    "smoothed": ("CrossEntropy", {
        "length_normalize": False, "label_smoothing": 0.1}),
    "perceptron": ("PerceptronLoss", {"length_normalize": True, "hinge": 0.0}),
    "hinge": ("PerceptronLoss", {"length_normalize": False, "hinge": 0.2})}


@pytest.mark.parametrize("name", KINDS)
def test_t5_is_the_originals(maker, expectations, batch, name):
  kind, options = KINDS[name]
  with np.load(expectations / "original" / "valid_labels.npz") as file:
    wanted = {key.removeprefix(f"{name}/"): file[key] for key in file}
  with jax.default_matmul_precision("highest"):
    total, sums, scores, gradient = run(
        maker, t5_model(maker, kind, **options), batch)
  np.testing.assert_allclose(scores[:2], wanted["scores"], rtol=1e-5)
  right = np.asarray(maker.LABEL_INDEX)
  if name == "hinge":
    # The first text's label wins by more; there, theirs is the hinge itself.
    assert by_hand(wanted["scores"], right, 0.2)[0] == 0
    total = total + 0.2
  np.testing.assert_allclose(total, wanted["loss"], rtol=1e-5)
  np.testing.assert_allclose(
      gradient, wanted["grad"], rtol=0,
      atol=1e-5 * np.abs(wanted["grad"]).max())
  assert sums["tokens"] == 2
  assert sums["correct"] == (wanted["scores"].argmax(1) == right).sum()
  if name == "perceptron":
    np.testing.assert_array_equal(
        maker.LABEL_TOKENS[np.argmax(scores[:2], axis=1)], wanted["predicted"])


def test_labels_of_one_task_among_those_of_another(maker, batch):
  """What fills up to C labels changes no loss and no prediction."""
  more = dict(batch)
  for name in ("label_tokens", "label_weights"):
    more[name] = np.pad(batch[name], ((0, 0), (0, 2), (0, 0)))
  model = t5_model(maker, "CrossEntropy")
  found, wanted = run(maker, model, more), run(maker, model, batch)
  np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
  np.testing.assert_allclose(found[3], wanted[3], atol=1e-6)
  np.testing.assert_array_equal(
      np.argmax(found[2], axis=1), np.argmax(wanted[2], axis=1))


@pytest.mark.slow
def test_valid_labels_alone_keep_the_plain_loss(maker, batch):
  model = t5_model(maker, "ValidLabelsOnly", length_normalize=False)
  params = state_lib.unflatten(drawn(maker, model))
  plain = encoder_decoder.EncoderDecoderModel(
      model.module, VOCABULARY, VOCABULARY, z_loss=1e-4)
  assert jax.jit(model.loss)(params, batch)[0] == jax.jit(plain.loss)(
      params, batch)[0]
  # The right label's sum is the log-likelihood of the target.
  scores = jax.jit(model.label_scores)(params, batch)
  np.testing.assert_allclose(
      np.take_along_axis(scores, batch["label_index"][:, None], 1)[:2, 0],
      jax.jit(plain.score)(params, batch)[:2], rtol=1e-5)


def test_an_example_without_a_label_has_no_loss(maker, batch):
  model = t5_model(maker, "PerceptronLoss", hinge=1.0)
  unknown = {**batch, "label_index": np.array([-1, 0, 2], np.int32)}
  total, sums, scores, gradient = run(maker, model, unknown)
  np.testing.assert_allclose(
      total, by_hand(scores, [0, 0, 2], 1.0)[1], rtol=1e-6)
  assert sums["tokens"] == 1 and np.isfinite(gradient).all()
  assert "z_loss" not in sums  # no cross-entropy, so no perplexity


# ---------------------------------------------------------- decoder-only models


def test_a_decoder_only_model_scores_labels_behind_inputs():
  """Oracle: `DecoderOnlyModel.score` of one label after the other."""
  config = causal_lm.Config(
      vocab_size=40, embed_dim=8, num_layers=1, num_heads=2, head_dim=4,
      mlp_dim=12, max_positions=20)
  module = causal_lm.CausalLM(
      config, lambda: train_prompts.Prompt(prompts.Prompt(3)))
  labels, inputs = ((11, 4, 1), (6, 1)), [[5, 9, 8, 7], [3, 12]]
  encoding = features.DecoderOnly()
  targets = [labels[1], labels[0]]
  batch = encoding.padded(inputs, targets, 4, 3) | labels_lib.batch_features(
      [(examples_of(labels, targets), i) for i in range(2)], 3, 2)
  plain = decoder_only.DecoderOnlyModel(module, VOCABULARY)
  draw = np.random.default_rng(0)
  params = jax.tree.map(
      lambda s: draw.normal(size=s.shape).astype(np.float32) * 0.4,
      plain.abstract()[0])
  model = valid_labels.PerceptronLossDecoderOnlyModel(
      module, VOCABULARY, hinge=0.2, length_normalize=False)
  scores, (total, _) = jax.jit(lambda params: (
      model.label_scores(params, batch), model.loss(params, batch)))(params)
  score = jax.jit(plain.score)
  for place, label in enumerate(labels):
    one = encoding.padded(inputs, [label] * 2, 4, 3)
    np.testing.assert_allclose(
        scores[:, place], score(params, one), rtol=1e-5)
  np.testing.assert_allclose(
      total, by_hand(scores, [1, 0], 0.2).sum(), rtol=1e-5)
