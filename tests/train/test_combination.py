"""Where the prompt goes: the original's outputs, and lists of positions."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.train import prompts as train_prompts


@pytest.fixture(scope="module")
def original(shared_data):
  with np.load(shared_data / "original_outputs" / "combine.npz",
               allow_pickle=False) as file:
    return dict(file)


def suffix(decoder_only, before_eos):
  return functools.partial(
      train_prompts.suffix_prompt, decoder_only=decoder_only,
      before_eos=before_eos)


@pytest.mark.parametrize("name, combine", [
    ("prefix", train_prompts.prefix_prompt),
    ("after_bos", train_prompts.prefix_prompt_after_bos),
    ("suffix_dec0_eos0", suffix(False, False)),
    ("suffix_dec0_eos1", suffix(False, True)),
    ("suffix_dec1_eos0", suffix(True, False)),
    ("suffix_dec1_eos1", suffix(True, True)),
])
def test_combinations_are_the_originals(original, name, combine):
  found = jax.jit(combine)(
      original["prompt"], original["x_embed"], original["x"])
  expected = original[name].copy()
  if name == "suffix_dec1_eos0":
    # Row 0 is full and does not start with the 0 of a decoder's sequence. The
    # original then has a zero behind the text, and the prompt's last position
    # runs over into row 1; ours keeps it in the row.
    assert not expected[0, 7].any()
    expected[0, 7:] = original["prompt"][0]
    expected[1, 0] = original["x_embed"][1, 0]
  assert found.dtype == expected.dtype
  np.testing.assert_array_equal(found, expected)


X = np.array([[5, 6, 7, 1], [5, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
# For decoders a 0 starts the sequence and counts as text.
DECODER_X = np.array([[0, 5, 6, 1], [0, 5, 1, 0], [0, 1, 0, 0]])


@pytest.mark.parametrize("x, combine, expected", [
    (X, train_prompts.prefix_prompt, ["pq0123"] * 4),
    (X, train_prompts.prefix_prompt_after_bos, ["0pq123"] * 4),
    (X, suffix(False, True), ["012pq3", "0pq123", "pq0123", "pq0123"]),
    (X, suffix(False, False), ["0123pq", "01pq23", "0pq123", "pq0123"]),
    (DECODER_X, suffix(True, True), ["012pq3", "01pq23", "0pq123"]),
    (DECODER_X, suffix(True, False), ["0123pq", "012pq3", "01pq23"]),
])
def test_every_position_is_there_once(x, combine, expected):
  """p and q are the prompt's two positions, digits those of the input."""
  random = np.random.RandomState(0)
  prompt = random.randn(len(x), 2, 3)
  x_embed = random.randn(len(x), 4, 3)
  found = combine(jnp.asarray(prompt), jnp.asarray(x_embed), jnp.asarray(x))
  for row, places in enumerate(expected):
    named = {
        "p": prompt[row, 0], "q": prompt[row, 1],
        **{str(i): x_embed[row, i] for i in range(4)}}
    np.testing.assert_array_equal(
        found[row], np.float32([named[place] for place in places]))


class Constant(nn.Module):
  """An unbatched prompt [2, 3] that has seen what it is called with."""

  @nn.compact
  def __call__(self, x, x_embed):
    self.sow("calls", "x", x)
    self.sow("calls", "x_embed", x_embed)
    return jnp.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_module_repeats_the_prompt_for_each_example(dtype):
  x_embed = jnp.ones((4, 4, 3), dtype)
  combined = {}

  def combine(prompt, x_embed, x):
    combined.update(prompt=prompt, x_embed=x_embed, x=x)
    return train_prompts.prefix_prompt(prompt, x_embed, x)

  out, variables = train_prompts.Prompt(Constant(), combine).apply(
      {}, X, x_embed, mutable="calls")
  calls = variables["calls"]["prompt"]
  np.testing.assert_array_equal(calls["x"][0], X)
  np.testing.assert_array_equal(calls["x_embed"][0], x_embed)
  # In the input's dtype: a float32 prompt does not make the encoder float32.
  expected = np.tile(np.arange(6.0).reshape(1, 2, 3), (4, 1, 1))
  assert combined["prompt"].dtype == out.dtype == dtype
  np.testing.assert_array_equal(combined["prompt"], expected)
  np.testing.assert_array_equal(combined["x_embed"], x_embed)
  np.testing.assert_array_equal(combined["x"], X)
  np.testing.assert_array_equal(out[:, :2], expected)


def test_gradient_of_a_suffix_goes_to_prompt_and_text_once():
  """The gradient of a sum is 1 everywhere: nothing is dropped or doubled."""
  gradients = jax.grad(
      lambda prompt, x_embed: train_prompts.suffix_prompt(
          prompt, x_embed, X).sum(), argnums=(0, 1))(
              jnp.zeros((4, 2, 3)), jnp.zeros((4, 4, 3)))
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 1.0)


def test_an_infix_stands_before_the_last_input():
  x_embed = jnp.arange(8.0).reshape(2, 4, 1)
  prompt = -jnp.ones((2, 2, 1))
  is_input = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)

  def run(x, **options):
    return np.asarray(train_prompts.infix_prompt(
        prompt, x_embed, x, **options))[..., 0].tolist()

  x = jnp.array([[9, 9, 9, 0], [9, 0, 0, 0]])
  want = [[0, 1, -1, -1, 2, 3], [-1, -1, 4, 5, 6, 7]]
  assert run(x) == run(jnp.ones((2, 4)), is_input=is_input) == want
