"""What a layer's prompt does to its input; in a T5: test_original.py.

Oracle of the decoder-only model: the original's, under Flaxformer, see
`make_original_expectations.py`.
"""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import errors, prompts
from prompt_tuning.methods import per_layer
from prompt_tuning.models import causal_lm, decoder_only
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import state as state_lib

COMBINE = {"replace": per_layer.replace_prompt, "add": per_layer.add_prompt}


def test_replace_and_add():
  x = jnp.arange(24.0).reshape(2, 4, 3)
  prompt = 100 + jnp.arange(12.0).reshape(2, 2, 3)
  for combine, front in ((per_layer.replace_prompt, prompt),
                         (per_layer.add_prompt, prompt + x[:, :2])):
    found = combine(prompt, x, None)
    np.testing.assert_array_equal(found[:, :2], front)
    np.testing.assert_array_equal(found[:, 2:], x[:, 2:])


def test_room_is_zeros_in_front():
  x = jnp.ones((2, 4, 3))
  door = train_prompts.Prompt(per_layer.Room(2))
  assert not jax.eval_shape(door.init, jax.random.key(0), None, x)
  found = door.apply({}, None, x)
  np.testing.assert_array_equal(found[:, :2], np.zeros((2, 2, 3)))
  np.testing.assert_array_equal(found[:, 2:], x)


# ------------------------------------------------------- a decoder-only model


def decoder(combine, **attributes):
  """A small Llama as the original's module is configured, prompts of 3."""
  room = per_layer.Room(3) if combine == "replace" else prompts.Prompt(3)
  return causal_lm.CausalLM(
      causal_lm.Config(
          vocab_size=128, embed_dim=8, num_layers=2, num_heads=2, head_dim=4,
          mlp_dim=16, norm_epsilon=1e-6, tie_logits=False,
          scan_layers=attributes.pop("scan_layers", False)),
      lambda: train_prompts.Prompt(room),
      layer_prompt_factory=lambda: train_prompts.Prompt(
          prompts.Prompt(3), COMBINE[combine]), **attributes)


def theirs(path):
  """The original's name of one of our parameters."""
  if path == "token_embedder/embedding":
    return f"decoder/{path}"
  for ours, name in (("/attention/", "/self_attention/"),
                     ("/pre_attention_", "/pre_self_attention_")):
    path = path.replace(ours, name)
  return path


def drawn(maker, module):
  """The original's weights under our names; stacked layers are stacked."""
  tokens = jnp.ones((1, 2), jnp.int32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]
  params = {}
  for path, leaf in state_lib.flatten(shapes).items():
    if "/layers/" in path:
      params[path] = np.stack([
          maker.draw(theirs(path.replace("/layers/", f"/layers_{i}/")),
                     leaf.shape[1:]) for i in range(leaf.shape[0])])
    else:
      params[path] = maker.draw(theirs(path), leaf.shape)
  return state_lib.unflatten(params)


def loss_and_gradients(maker, module):
  trained, frozen = state_lib.split(drawn(maker, module), [".*/prompt/.*"])

  def loss(trained):
    params = state_lib.merge(trained, frozen)
    logits = module.apply({"params": params}, maker.DECODER_INPUTS)
    targets = jnp.asarray(maker.DECODER_TARGETS)
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    return -(picked * (targets > 0)).sum(), logits

  (value, logits), gradients = jax.jit(
      jax.value_and_grad(loss, has_aux=True))(trained)
  return value, logits, state_lib.flatten(gradients)


def assert_relative(found, wanted, tolerance=1e-5):
  np.testing.assert_allclose(
      found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("share_prompt", [True, False])
@pytest.mark.parametrize("combine", COMBINE)
def test_a_decoder_only_model_is_the_originals(
    maker, expected, highest_precision, combine, share_prompt):
  wanted = expected("per_layer_decoder")
  module = decoder(combine, share_prompt=share_prompt)
  value, logits, gradients = loss_and_gradients(maker, module)
  shapes = {theirs(path): list(leaf.shape) for path, leaf in
            state_lib.flatten(drawn(maker, module)).items()}
  dead = {"decoder/prompt/prompt/prompt"} if combine == "replace" else set()
  all_shapes = json.loads(str(wanted["shapes"]))
  assert shapes == {k: v for k, v in all_shapes.items() if k not in dead}
  assert_relative(value, wanted[f"{combine}/loss"])
  assert_relative(
      logits[maker.DECODER_TARGETS > 0], wanted[f"{combine}/logits"])
  prefix = f"{combine}/grad/"
  assert set(gradients) | dead == {
      name.removeprefix(prefix) for name in wanted if name.startswith(prefix)}
  for path in dead:  # the original trains it in vain
    assert not wanted[prefix + path].any()
  for path, gradient in gradients.items():
    assert np.abs(gradient).max() > 1e-3
    assert_relative(gradient, wanted[prefix + path])


def test_stacked_layers_are_the_originals_too(
    maker, expected, highest_precision):
  value, _, gradients = loss_and_gradients(
      maker, decoder("add", scan_layers=True))
  wanted = expected("per_layer_decoder")
  assert_relative(value, wanted["add/loss"])
  for i, gradient in enumerate(
      gradients["decoder/layers/prompt/prompt/prompt"]):
    assert_relative(
        gradient, wanted[f"add/grad/decoder/layers_{i}/prompt/prompt/prompt"])


@pytest.mark.parametrize("share_prompt", [True, False])
def test_decoding_keeps_to_the_layers_prompts(maker, share_prompt):
  """Oracle: the argmax of whole texts, one token longer each time."""
  module = decoder("replace", share_prompt=share_prompt)
  params, rows = drawn(maker, module), np.array([[5, 9, 8], [3, 12, 4]])
  model = decoder_only.DecoderOnlyModel(
      module, types.SimpleNamespace(eos_id=127))
  length = 4
  batch = {
      "decoder_input_tokens": np.pad(rows, ((0, 0), (0, length))),
      "decoder_target_tokens": np.zeros((2, length), np.int32),
      "decoder_target_positions": np.full((2, 1), 2) + np.arange(length)}
  found = jax.jit(model.predict)(params, batch)
  text, run = rows, jax.jit(lambda tokens: module.apply(
      {"params": params}, tokens))
  for _ in range(length):
    text = np.concatenate(
        [text, np.argmax(run(text)[:, -1:], axis=-1)], axis=1)
  assert 127 not in text
  np.testing.assert_array_equal(found, text[:, 3:])


def test_the_prompt_must_stand_in_front():
  module = dataclasses.replace(
      decoder("add"), prompt_factory=lambda: train_prompts.Prompt(
          prompts.Prompt(3), train_prompts.prefix_prompt_after_bos))
  for wrong in (module, dataclasses.replace(module, prompt_factory=None)):
    with pytest.raises(errors.UserError, match="PER_LAYER_PROMPT needs"):
      jax.eval_shape(
          wrong.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))
