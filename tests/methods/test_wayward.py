"""Wayward prompts. Oracle: the original's distance; a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.methods import wayward
from prompt_tuning.models import encoder_decoder
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib


def test_the_distance_and_its_gradient_are_the_originals(maker, expected):
  x, y = (maker.draw(name, (3, 8)) for name in ("continuous", "discrete"))
  value, gradient = jax.value_and_grad(wayward.squared_l2_distance)(x, y)
  wanted = expected("wayward")
  np.testing.assert_allclose(value, wanted["distance"], rtol=1e-5)
  np.testing.assert_allclose(gradient, wanted["grad"], rtol=1e-5)


@pytest.mark.parametrize("factor, microbatches", [
    (None, 1), (None, 2), (4.0, 1), (4.0, 3), ("num_tokens", 1),
    ("num_tokens", 3)])
def test_the_distance_counts_once_a_step(
    maker, monkeypatch, factor, microbatches):
  """Whatever the engine divides by and however the batch is cut."""
  monkeypatch.setattr(
      encoder_decoder.EncoderDecoderModel, "loss",
      lambda self, params, batch, rng=None: (
          0.0 * jnp.sum(batch["x"]), {"tokens": jnp.sum(batch["x"])}))
  discrete = maker.draw("discrete", (3, 8))
  prompt = maker.draw("continuous", (3, 8))
  model = wayward.WaywardPromptEncoderDecoderModel(
      None, None, None, loss_normalizing_factor=factor, gamma=0.5,
      discrete_prompt=discrete, num_microbatches=microbatches)
  gradient = step_lib.make_gradient(model, microbatches)
  tree = state_lib.unflatten({model.prompt_path: prompt})
  found, _ = gradient(
      tree, {}, {"x": jnp.arange(1.0, 7.0)}, jax.random.key(0), 0)
  np.testing.assert_allclose(
      found["encoder"]["prompt"]["prompt"]["prompt"],
      0.5 * 2 / 3 * (prompt - discrete), rtol=1e-5)


@pytest.mark.parametrize("path, shape, words", [
    ("encoder/prompt/prompt/prompt", (4, 8), r"of \(3, 8\), .* of \(4, 8\)"),
    ("encoder/prompt", (3, 8), "no such parameter")])
def test_a_discrete_prompt_of_another_shape_is_named(
    monkeypatch, path, shape, words):
  monkeypatch.setattr(
      encoder_decoder.EncoderDecoderModel, "loss",
      lambda *_: (0.0, {"tokens": 1.0}))
  model = wayward.WaywardPromptEncoderDecoderModel(
      None, None, None, discrete_prompt=np.zeros(shape), prompt_path=path)
  tree = state_lib.unflatten(
      {"encoder/prompt/prompt/prompt": np.zeros((3, 8))})
  with pytest.raises(errors.UserError, match=words):
    model.loss(tree, {})


def test_the_text_of_a_task():
  assert wayward.task_text("a {} b") == "a {} b"
  assert wayward.task_text("a {} b", ["x"]) == "a x b"
  assert wayward.task_text("a {y} b", {"y": "x"}) == "a x b"
  for values in ([], {}):
    with pytest.raises(errors.UserError, match="VERBALIZERS"):
      wayward.task_text("a {} {y}", values)
