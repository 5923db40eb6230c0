"""The original's per-layer, multi-task and (IA)3 prompts in a T5.

Oracle: google-research/prompt-tuning's modules under T5X, see
`make_original_expectations.py`.
"""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import errors, masks, prompts
from prompt_tuning.methods import ia3, multitask, multitask_prompts, per_layer
from prompt_tuning.models import encoder_decoder, layers, t5
from prompt_tuning.train import adafactor
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import state as state_lib
from prompt_tuning.train import step as step_lib

pytestmark = pytest.mark.usefixtures("highest_precision")

def prompt(combine=train_prompts.prefix_prompt):
  return train_prompts.Prompt(prompts.Prompt(3), combine)


def multitask_door():
  return multitask.FirstTokenTask(
      multitask_prompts.AddMultiTaskPrompt(4, num_tasks=3),
      functools.partial(multitask.sentinel_to_task, vocab_size=128))


# Attributes of our module and model, and what is trained.
OURS = {
    "per_layer_replace": (
        {"prompt_factory": lambda: train_prompts.Prompt(per_layer.Room(3)),
         "layer_prompt_factory": lambda: prompt(per_layer.replace_prompt)},
        None,
        [".*/prompt/.*"]),
    "per_layer_add": (
        {"prompt_factory": prompt,
         "layer_prompt_factory": lambda: prompt(per_layer.add_prompt)}, None,
        [".*/prompt/.*"]),
    "multitask_add": (
        {"prompt_factory": multitask_door,
         "encoder_mask_factory": lambda: masks.prompt_encoder_attention_mask(
             4, multitask=True, causal_by_default=True)}, None,
        [".*/shared_prompt", ".*/task_prompts/.*"]),
    "ia3": ({}, ia3.OriginalIa3(), [".*/ia3_scaling"])}


def our_model(maker, case, **changes):
  config = t5.Config(**{
      {"NUM_EMBEDDINGS": "vocab_size"}.get(name, name.lower()): value
      for name, value in maker.SIZES.items()} | changes)
  attributes, delta, _ = OURS[case]
  vocabulary = types.SimpleNamespace(eos_id=1)
  return encoder_decoder.EncoderDecoderModel(
      t5.EncoderDecoder(config, **attributes), vocabulary, vocabulary,
      z_loss=1e-4, delta=delta)


def drawn(maker, model):
  """The original's weights, nested."""
  return state_lib.unflatten({
      path: maker.draw(path, leaf.shape) for path, leaf in
      state_lib.flatten(model.abstract()[0]).items()})


class Run:
  """Our model of one case on the original's weights, compiled once.

  The start of the optimizer is data to the compiled step, so that both starts
  share it.
  """

  def __init__(self, maker, case):
    self.case, self.model = case, our_model(maker, case)
    self.batch = maker.batch(case)
    _, rate, options = maker.CASES[case]
    self.optimizer = functools.partial(
        adafactor.Adafactor, rate, decay_rate=0.8, **options)
    self.trainable, self.frozen = state_lib.split(
        drawn(maker, self.model), OURS[case][2])
    gradient = step_lib.make_gradient(self.model)

    @jax.jit
    def step(state, frozen):
      gradients, sums = gradient(
          state.trainable, frozen, self.batch, None, state.step)
      new, _ = step_lib.update(self.optimizer(), state, gradients, sums)
      logits = self.model.logits(
          state_lib.merge(state.trainable, frozen), self.batch)
      return new, gradients, sums, logits

    self.step = step

  def start(self, first):
    optimizer = self.optimizer(initial_step=first)
    return step_lib.TrainState(
        jnp.int32(first), self.trainable, optimizer.init(self.trainable))


@pytest.fixture(scope="module", params=OURS)
def run(request, maker):
  with jax.default_matmul_precision("highest"):
    yield Run(maker, request.param)


def assert_relative(found, wanted, tolerance=1e-5):
  """Relative to the largest number: sums of mixed signs cancel."""
  assert found.shape == wanted.shape
  np.testing.assert_allclose(
      found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_parameters_have_the_originals_names_and_shapes(run, expected):
  shapes = {path: list(leaf.shape) for path, leaf in
            state_lib.flatten(run.model.abstract()[0]).items()}
  wanted = json.loads(str(expected(run.case)["shapes"]))
  if run.case == "per_layer_replace":  # its own, dead at the embedded input
    assert wanted.pop("encoder/prompt/prompt/prompt")
  assert shapes == wanted


def test_logits_loss_and_gradients_are_the_originals(run, expected):
  wanted = expected(run.case)
  _, gradients, sums, logits = run.step(run.start(0), run.frozen)
  assert_relative(
      logits[run.batch["decoder_loss_weights"] > 0], wanted["logits"])
  assert_relative(sums["loss"], wanted["loss"])
  gradients = state_lib.flatten(gradients)
  assert {f"grad/{path}" for path in gradients} == {
      name for name in wanted if name.startswith("grad/")}
  for path, gradient in gradients.items():
    assert np.abs(gradient).max() > 1e-3, path
    assert_relative(gradient, wanted[f"grad/{path}"])


@pytest.mark.parametrize("first", [0, 1_100_000])
def test_updates_are_the_originals_and_change_what_is_trained(
    run, maker, expected, first):
  wanted, state = expected(run.case), run.start(first)
  frozen = jax.tree.map(np.copy, run.frozen)
  for count in range(1, max(maker.STEPS) + 1):
    state, *_ = run.step(state, frozen)
    found = state_lib.flatten(state.trainable)
    if count in maker.STEPS:
      for path, value in found.items():
        np.testing.assert_allclose(
            value, wanted[f"adafactor/start{first}/step{count}/{path}"],
            rtol=0, atol=1e-5 if count < 5 else 1e-4, err_msg=path)
  for path, start in state_lib.flatten(run.trainable).items():
    assert np.any(found[path] != start), path
  # They are the step's arguments and never its results.
  jax.tree.map(np.testing.assert_array_equal, frozen, run.frozen)
  assert not set(found) & set(state_lib.flatten(frozen))


def test_stacked_layers_have_the_originals_loss_too(maker, expected):
  model = our_model(maker, "ia3", scan_layers=True)
  one_by_one = state_lib.flatten(drawn(maker, our_model(maker, "ia3")))
  params = {}
  for path in state_lib.flatten(model.abstract()[0]):
    count = maker.SIZES[f"NUM_{path.split('/')[0].upper()}_LAYERS"] if (
        "/layers/" in path) else 0
    params[path] = np.stack([
        one_by_one[path.replace("/layers/", f"/layers_{i}/")]
        for i in range(count)]) if count else one_by_one[path]
  loss, _ = jax.jit(model.loss)(
      state_lib.unflatten(params), maker.batch("ia3"))
  assert_relative(loss, expected("ia3")["loss"])


# ------------------------------------------------------------------------ masks


def test_a_mask_of_another_length_is_named(maker):
  model = our_model(maker, "multitask_add")
  module = model.module.clone(
      encoder_mask_factory=lambda: masks.prompt_encoder_attention_mask(5))
  tokens = jnp.ones((1, 4), jnp.int32)
  with pytest.raises(errors.UserError, match="for 9 pos.*there are 7"):
    jax.eval_shape(lambda: module.init(
        jax.random.key(0), tokens, tokens, enable_dropout=False))


# ------------------------------------------------------------------------- IA3


def test_merged_scales_and_kernels_are_the_originals(
    maker, expected, monkeypatch):
  """Where few targets go through the kernels."""
  monkeypatch.setattr(layers, "few_queries", lambda *_: True)
  model = our_model(maker, "ia3")
  params, batch = drawn(maker, model), maker.batch("ia3")
  merged = model.delta.merge(params)
  assert not [path for path in state_lib.flatten(merged) if "ia3" in path]
  for delta, given in ((model.delta, params), (None, merged)):
    logits = jax.jit(
        dataclasses.replace(model, delta=delta).logits)(given, batch)
    assert_relative(logits[batch["decoder_loss_weights"] > 0],
                    expected("ia3")["logits"])


def test_scales_where_ia3_has_them():
  """`Ia3` has them inside the Dense modules, as vectors; layers may stack."""
  scale = np.arange(12.0).reshape(2, 2, 3)
  kernel = {"kernel": np.ones((2, 4, 6))}
  found = ia3.to_plain({"layers": {
      "attention": {"key": kernel, "k_conv": {"ia3_scaling": scale}},
      "mlp": {"intermediate_conv": {"ia3_scaling": scale[:, 0]}}}})["layers"]
  assert set(found["attention"]) == {"key"}
  assert found["attention"]["key"]["kernel"] is kernel["kernel"]
  np.testing.assert_array_equal(
      found["attention"]["key"]["ia3"]["scale"], scale.reshape(2, 6))
  np.testing.assert_array_equal(
      found["mlp"]["wo"]["ia3"]["scale"], scale[:, 0])


def test_what_the_original_has_no_scale_for_is_named(maker):
  model = dataclasses.replace(
      our_model(maker, "ia3"),
      delta=ia3.OriginalIa3(targets=[".*attention/query"]))
  with pytest.raises(errors.UserError, match="attention/query.*Ia3 can"):
    model.abstract()
