"""Tests of methods.folding. Oracle: the model's own logits before folding."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import prompts
from prompt_tuning.methods import (
  folding,
  multitask,
  p_tuning,
  prefix,
  projected,
)
from prompt_tuning.models import causal_lm, t5
from prompt_tuning.train import prompts as train_prompts

TOKENS = jnp.asarray([[5, 6, 7, 8], [9, 3, 2, 4]])
CAUSAL = causal_lm.Config(32, 8, 2, 2, 4, 16)
T5 = t5.Config(32, 8, 2, 4, 16, 1, 1)


def prompt(encoder):
  return lambda: train_prompts.Prompt(encoder)


CASES = {
    "mlp": ({"prompt_factory": prompt(p_tuning.MlpPrompt(3, 5))},
            {"prompt_factory": prompt(prompts.Prompt(3))}),
    "lstm": ({"prompt_factory": prompt(p_tuning.LstmPrompt(3, 5))},
             {"prompt_factory": prompt(prompts.Prompt(3))}),
    "projected": ({"prompt_factory": prompt(projected.ProjectedPrompt(3, 5))},
                  {"prompt_factory": prompt(prompts.Prompt(3))}),
    "prefix": ("prefix", lambda: prefix.ProjectedPrefix(3, 5),
               lambda: prefix.Prefix(3)),
}


def modules(case, is_t5):
  """The module that is trained, and the one that uses what is saved."""
  if case == "prefix":
    name = "decoder_prefix_factory" if is_t5 else "prefix_factory"
    options = [{name: factory} for factory in CASES[case][1:]]
  else:
    options = CASES[case]
  make, config = (
      (t5.EncoderDecoder, T5) if is_t5 else (causal_lm.CausalLM, CAUSAL))
  return [make(config, **one) for one in options]


def arguments(is_t5):
  if is_t5:
    return (TOKENS, TOKENS), {"enable_dropout": False}
  return (TOKENS,), {}


@pytest.mark.parametrize("is_t5", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_folded_model_is_the_same_function(case, is_t5):
  trained, plain = modules(case, is_t5)
  inputs, options = arguments(is_t5)
  params = trained.init(jax.random.PRNGKey(0), *inputs, **options)["params"]
  folded = folding.fold(trained, params)
  wanted = plain.init(jax.random.PRNGKey(0), *inputs, **options)["params"]
  assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, wanted)
  np.testing.assert_allclose(
      plain.apply({"params": folded}, *inputs, **options),
      trained.apply({"params": params}, *inputs, **options), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("peft_layers", [False, True])
def test_all_three_prefixes_of_t5_are_folded(peft_layers):
  doors = ("encoder_prefix_factory", "decoder_prefix_factory",
           "cross_prefix_factory")
  config = t5.Config(32, 8, 2, 4, 16, 3, 3)
  trained, plain = (
      t5.EncoderDecoder(config, **dict.fromkeys(doors, make)) for make in (
          lambda: prefix.ProjectedPrefix(3, 5, peft_layers=peft_layers),
          lambda: prefix.Prefix(3)))
  inputs, options = arguments(True)
  params = jax.jit(lambda: trained.init(
      jax.random.PRNGKey(0), *inputs, **options))()["params"]
  folded = folding.fold(trained, params)
  assert set(folded["decoder"]["cross_prefix"]) == {"prefix"}
  np.testing.assert_allclose(
      plain.apply({"params": folded}, *inputs, **options),
      trained.apply({"params": params}, *inputs, **options), atol=1e-6)


@pytest.mark.parametrize("factory", [
    None, prompt(prompts.Prompt(3)),
    prompt(multitask.MultitaskPrompt(3, 2))])
def test_the_rest_is_left_alone(factory):
  module = causal_lm.CausalLM(CAUSAL, factory)
  params = module.init(jax.random.PRNGKey(0), TOKENS)["params"]
  folded = folding.fold(module, params)
  assert list(flax.traverse_util.flatten_dict(folded)) == list(
      flax.traverse_util.flatten_dict(params))


def test_a_trained_tree_without_the_encoder_stays():
  trained, _ = modules("mlp", False)
  tree = {"decoder": {"decoder_norm": {"scale": jnp.ones(8)}}}
  assert folding.fold(trained, tree) == tree
