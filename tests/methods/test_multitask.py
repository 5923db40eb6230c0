"""Tests of methods.multitask. Oracles: the product, PEFT's module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import methods
from prompt_tuning.methods import multitask
from prompt_tuning.models import causal_lm
from prompt_tuning.train import prompts as train_prompts
from prompt_tuning.train import sharding

LENGTH, TASKS, RANKS, WIDTH = 4, 3, 2, 8
EMBEDDED = jnp.arange(2 * 5 * WIDTH, dtype=jnp.float32).reshape(2, 5, WIDTH)
TOKENS = jnp.asarray([[3, 9, 9, 9, 9], [2, 9, 9, 9, 9]])


def module(**options):
  return multitask.MultitaskPrompt(LENGTH, TASKS, RANKS, **options)


@pytest.fixture(scope="module")
def params():
  shapes = {"prompt": (LENGTH, WIDTH), "cols": (TASKS, LENGTH, RANKS),
            "rows": (TASKS, RANKS, WIDTH)}
  rng = np.random.default_rng(0)
  return {name: jnp.float32(rng.normal(size=shape))
          for name, shape in shapes.items()}


def by_hand(params, task):
  return params["prompt"] * (params["cols"][task] @ params["rows"][task])


def test_one_task_for_all(params):
  for task in range(TASKS):
    got = methods.folded(module(task=task), params, WIDTH)
    np.testing.assert_allclose(got, by_hand(params, task), rtol=1e-6)


def test_a_task_for_each_example(params):
  got = module().apply(
      {"params": params}, TOKENS, EMBEDDED, jnp.asarray([2, 0]))
  np.testing.assert_allclose(
      got, jnp.stack([by_hand(params, 2), by_hand(params, 0)]), rtol=1e-6)


def test_the_first_token_names_the_task(params):
  door = multitask.FirstTokenTask(module())
  out = door.apply({"params": {"prompt": params}}, TOKENS, EMBEDDED)
  assert out.shape == (2, LENGTH + 4, WIDTH)  # without the task's token
  for row, task in enumerate((2, 1)):
    np.testing.assert_allclose(
        out[row, :LENGTH], by_hand(params, task), rtol=1e-6)
  np.testing.assert_array_equal(out[:, LENGTH:], EMBEDDED[:, 1:])


def test_a_model_reads_each_examples_task(params):
  """A batch of two tasks gives what each gives alone, without its token."""
  config = causal_lm.Config(32, WIDTH, 2, 2, 4, 16)
  whole = causal_lm.CausalLM(
      config, lambda: multitask.FirstTokenTask(module()))
  variables = whole.init(jax.random.PRNGKey(0), TOKENS)
  variables["params"]["decoder"]["prompt"]["prompt"] = params
  together = whole.apply({"params": variables["params"]}, TOKENS)
  for row, task in enumerate((2, 1)):
    alone = causal_lm.CausalLM(
        config, lambda t=task: train_prompts.Prompt(module(task=t)))
    got = alone.apply({"params": variables["params"]}, TOKENS[row:row + 1, 1:])
    np.testing.assert_allclose(together[row, 1:], got[0], atol=1e-5)


def test_starts_small_and_every_axis_has_a_rule():
  variables = module().init(jax.random.PRNGKey(0), TOKENS, EMBEDDED)
  assert np.std(variables["params"]["cols"]) < 0.04
  for name, axes in variables["params_axes"].items():
    shape = variables["params"][name.removesuffix("_axes")].shape
    sharding.partition_spec(
        axes.names, shape, {"data": 1, "fsdp": 1, "model": 1})


@pytest.mark.parity
def test_equals_peft(params):
  torch = pytest.importorskip("torch")
  peft = pytest.importorskip("peft")
  from peft.tuners import multitask_prompt_tuning as theirs

  embedding = theirs.MultitaskPromptEmbedding(
      peft.MultitaskPromptTuningConfig(
          num_virtual_tokens=LENGTH, token_dim=WIDTH, num_tasks=TASKS,
          num_ranks=RANKS, num_transformer_submodules=1,
          task_type="CAUSAL_LM"), torch.nn.Embedding(32, WIDTH))
  embedding.load_state_dict({
      "embedding.weight": torch.tensor(np.array(params["prompt"])),
      "prefix_task_cols": torch.tensor(np.array(params["cols"])),
      "prefix_task_rows": torch.tensor(np.array(params["rows"]))})
  ids = torch.tensor([2, 0])
  with torch.no_grad():
    expected = embedding(torch.arange(LENGTH).repeat(2, 1), ids).numpy()
  got = module().apply(
      {"params": params}, TOKENS, EMBEDDED, jnp.asarray(ids.numpy()))
  np.testing.assert_allclose(got, expected, atol=1e-6)
