"""The engine's side of decoder-only models, against writing it all out."""

import dataclasses
import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import prompts
from prompt_tuning.data import features
from prompt_tuning.decoding import beam, greedy, sampling
from prompt_tuning.models import causal_lm, decoder_only
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import state as state_lib

EOS = 5
INPUTS = [[7, 8, 9], [3, 4, 11, 12, 13], [2]]
TARGETS = [[1, 2, EOS], [9, EOS], [0, 6, 8, EOS]]
CONFIG = causal_lm.Config(
    vocab_size=60, embed_dim=16, num_layers=2, num_heads=4, head_dim=4,
    mlp_dim=24, num_kv_heads=2, max_positions=40)


def _model(**options):
  factory = functools.partial(
      train_prompts.Prompt,
      prompts.Prompt(3, nn.initializers.normal(1.0)))
  vocabulary = types.SimpleNamespace(eos_id=EOS)
  return decoder_only.DecoderOnlyModel(
      causal_lm.CausalLM(CONFIG, factory), vocabulary, **options)


@pytest.fixture(scope="module")
def params():
  shapes, _ = _model().abstract()
  rng = np.random.default_rng(3)
  return jax.tree.map(
      lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.5, s.dtype),
      shapes)


@pytest.fixture(scope="module")
def batch():
  return features.DecoderOnly().padded(INPUTS, TARGETS, 6, 4)


@jax.jit
def _padded_logits(params, tokens):
  return _model().module.apply({"params": params}, tokens)[0]


def _log_probs(params, ids):
  """Of every next token of one text: [T, V]; what follows is never seen."""
  padded = np.asarray([ids + [0] * (12 - len(ids))])
  logits = np.asarray(_padded_logits(params, padded), float)[:len(ids)]
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _target_log_probs(params):
  """Per example, the log-probability of each target token."""
  found = []
  for inputs, targets in zip(INPUTS, TARGETS):
    log_probs = _log_probs(params, inputs + targets[:-1])
    found.append([
        log_probs[len(inputs) - 1 + i, token]
        for i, token in enumerate(targets)])
  return found


def test_loss_is_over_targets_alone(params, batch):
  total, sums = jax.jit(_model().loss)(params, batch)
  want = _target_log_probs(params)
  np.testing.assert_allclose(total, -sum(map(sum, want)), rtol=1e-5)
  assert sums["tokens"] == sum(map(len, TARGETS))


def test_score_is_the_targets_log_probability(params, batch):
  np.testing.assert_allclose(
      jax.jit(_model().score)(params, batch),
      [sum(row) for row in _target_log_probs(params)], rtol=1e-5)


def _greedily(params, inputs, steps):
  ids = list(inputs)
  for _ in range(steps):
    ids.append(int(_log_probs(params, ids)[-1].argmax()))
    if ids[-1] == EOS:
      break
  return (ids[len(inputs):] + [0] * steps)[:steps]


def test_greedy_decoding_is_the_likeliest_next_token(params, batch):
  model = _model(decode_fn=greedy.greedy)
  np.testing.assert_array_equal(
      jax.jit(model.predict)(params, batch),
      [_greedily(params, row, 4) for row in INPUTS])


def test_decoding_never_sees_the_targets(params, batch):
  model = _model(decode_fn=greedy.greedy)
  others = features.DecoderOnly().padded(
      INPUTS, [[30, 31, 32]] * 3, 6, 4)
  decode = jax.jit(model.predict)
  np.testing.assert_array_equal(decode(params, batch), decode(params, others))


def test_beams_give_scores_that_are_the_models(params, batch):
  model = _model(decode_fn=functools.partial(
      beam.beam_search, num_beams=3, alpha=0.0))
  tokens, scores = jax.jit(model.decodes)(params, batch)
  assert tokens.shape == (3, 3, 4)
  for inputs, ids, score in zip(INPUTS, tokens[:, 0].tolist(), scores[:, 0]):
    ids = ids[:ids.index(EOS) + 1] if EOS in ids else ids
    log_probs = _log_probs(params, inputs + ids[:-1])
    want = sum(log_probs[len(inputs) - 1 + i, t] for i, t in enumerate(ids))
    np.testing.assert_allclose(score, want, rtol=1e-4)


def test_samples_of_temperature_0_are_greedy(params, batch):
  sampled, plain = (
      jax.jit(_model(decode_fn=f).predict)(params, batch, key)
      for f, key in (
          (functools.partial(sampling.sample, temperature=0.0, num_samples=2),
           jax.random.PRNGKey(0)),
          (greedy.greedy, None)))
  np.testing.assert_array_equal(sampled, plain)


def test_every_parameter_has_logical_axes():
  shapes, axes = _model().abstract()
  for path, shape in state_lib.flatten(shapes).items():
    assert len(state_lib.flatten(axes)[path]) == len(shape.shape), path


def test_a_step_costs_forward_and_activation_gradients_only(batch):
  """4N FLOPs a token: frozen weights have no gradient."""
  config = dataclasses.replace(CONFIG, embed_dim=64, mlp_dim=256, num_layers=3)
  model = _model()
  model = dataclasses.replace(
      model, module=causal_lm.CausalLM(config, model.module.prompt_factory))
  shapes, _ = model.abstract()
  trainable, frozen = state_lib.split(shapes, [".*/prompt/.*"])

  def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()[
        "flops"]

  forward = flops(lambda t, f: model.loss(state_lib.merge(t, f), batch)[0],
                  trainable, frozen)
  step = flops(
      jax.grad(lambda t, f: model.loss(state_lib.merge(t, f), batch)[0]),
      trainable, frozen)
  # Activation gradients of products cost once more what they cost forward;
  # weight gradients would make it three times.
  assert step < 2.25 * forward

