"""The original's multi-task prompts. Oracle: its modules; and bad indices."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.data import features
from prompt_tuning.methods import multitask, multitask_prompts
from prompt_tuning.models import t5
from prompt_tuning.train import inputs


def multitask_door():
  return multitask.FirstTokenTask(
      multitask_prompts.AddMultiTaskPrompt(4, num_tasks=3),
      functools.partial(multitask.sentinel_to_task, vocab_size=128))


@pytest.mark.parametrize(
    "kind", ["Add", "Concat", "ConcatFeatures", "Project"])
def test_combinations_are_the_originals(maker, expected, kind):
  """And each task's prompt is what plain inputs get when it is chosen."""
  options = dict(maker.COMBINATIONS[kind])
  options.pop("task_features", None)  # follows from the model's width
  make = functools.partial(
      getattr(multitask_prompts, f"{kind}MultiTaskPrompt"), 4, maker.TASKS,
      **options)
  tokens, embedded = jnp.ones((3, 8), jnp.int32), jnp.zeros((3, 8, 8))
  tasks = jnp.array([2, 0, 1])
  variables = jax.eval_shape(
      lambda: make().init(jax.random.key(0), tokens, embedded, tasks))
  params = jax.tree_util.tree_map_with_path(
      lambda path, leaf: maker.draw(
          kind + "/" + "/".join(key.key for key in path), leaf.shape),
      variables["params"])
  found = jax.jit(make().apply)(
      {"params": params}, tokens, embedded, tasks)
  np.testing.assert_allclose(
      found, expected("multitask_combined")[kind], rtol=1e-5, atol=1e-5)
  one = jax.jit(make(task=2).apply)({"params": params}, tokens, embedded)
  np.testing.assert_allclose(one, found[0], atol=1e-6)


def test_features_to_share_must_be_given():
  for shared in (None, 0, 8):
    prompt = multitask_prompts.ConcatFeaturesMultiTaskPrompt(
        4, 3, shared_features=shared)
    with pytest.raises(errors.UserError, match="shared_features.*1 to 7"):
      jax.eval_shape(lambda p=prompt: p.init(
          jax.random.key(0), jnp.ones((1, 2)), jnp.ones((1, 2, 8))))


@pytest.mark.parametrize("to_task, tokens, tasks", [
    (multitask.identity, [0, 2], [0, 2]),
    (multitask.from_first_id, [1, 3], [0, 2]),
    (functools.partial(multitask.sentinel_to_task, vocab_size=32100),
     [32099, 32097], [0, 2])])
def test_tokens_of_tasks(to_task, tokens, tasks):
  np.testing.assert_array_equal(to_task(np.array(tokens)), tasks)


@pytest.mark.parametrize("token", [124, 128])
def test_a_task_out_of_range_is_no_other_task(token):
  """`check_examples` is for the host; here what is computed is not finite."""
  door = multitask_door()
  tokens, embedded = jnp.array([[token, 5], [125, 5]]), jnp.ones((2, 2, 8))
  prompt = {"shared_prompt": jnp.ones((4, 8)),
            "task_prompts": {"embedding": jnp.ones((3, 32))}}
  found = jax.jit(door.apply)(
      {"params": {"prompt": prompt}}, tokens, embedded)
  assert np.isnan(found[0, :4]).all()
  assert np.isfinite(found[1]).all()


class Examples:
  """What `check_examples` reads of `token_ids.Examples`."""

  task_name, split = "mine", "train"

  def __init__(self, *inputs):
    self.arrays = {
        "inputs": np.concatenate([[], *inputs]).astype(np.int32),
        "inputs_offsets": np.cumsum([0, *map(len, inputs)])}

  def __len__(self):
    return len(self.arrays["inputs_offsets"]) - 1

  def lengths(self, feature):
    return np.diff(self.arrays[f"{feature}_offsets"])


@pytest.mark.parametrize("wrong, words", [
    ([124, 1], "token 124, which is task 3"),
    ([128, 1], "token 128, which is task -1"), ([], "no token")])
def test_examples_without_a_task_are_refused(wrong, words):
  module = t5.EncoderDecoder(None, multitask_door)
  multitask.check_examples(module, Examples([127, 5], [125, 1]))
  multitask.check_examples(module, Examples())
  multitask.check_examples(t5.EncoderDecoder(None), Examples(wrong))
  with pytest.raises(
      errors.UserError, match=f"Example 1 of mine.*{words}.*tasks 0 to 2"):
    multitask.check_examples(module, Examples([127, 5], wrong, [127, 1]))


def test_padding_is_no_task_to_t5():
  """A mask would hide the prompt's last position."""
  def door():
    return multitask_door().clone(to_task_idx=multitask.identity)

  with pytest.raises(errors.UserError, match="0 for its first token.*padding"):
    multitask.check_examples(
        t5.EncoderDecoder(None, door), Examples([1, 5], [0, 1]))


def test_the_check_stands_where_examples_are_read(monkeypatch):
  monkeypatch.setattr(
      features, "tokenize", lambda *_: Examples([127, 5], [124, 1]))
  model = types.SimpleNamespace(
      module=t5.EncoderDecoder(None, multitask_door), input_vocabulary=None,
      output_vocabulary=None, features=None, instance_encoder=None)
  dataset = types.SimpleNamespace(
      split="train", task_feature_lengths={}, cache_dir="cache")
  with pytest.raises(errors.UserError, match="Example 1 of mine .train."):
    inputs.tokenized(None, dataset, model, "run")
