"""Masks against the original's outputs, and against loops over positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import errors, masks

TOKENS = np.array([[4, 9, 1, 0], [7, 1, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def original(shared_data):
  with np.load(shared_data / "original_outputs" / "masks.npz",
               allow_pickle=False) as file:
    return dict(file)


def assert_same(found, expected):
  assert found.dtype == expected.dtype
  np.testing.assert_array_equal(found, expected)


def test_encoder_mask_is_the_originals(original):
  make = masks.create_prompt_encoder_mask(5)
  assert_same(jax.jit(make)(original["tokens"]), original["encoder_p5"])


def test_decoder_only_masks_are_the_originals(original):
  make = jax.jit(masks.create_prompt_decoder_only_mask(5))
  assert_same(
      make(original["tokens"], original["causal"]),
      original["deconly_p5_prefix"])
  assert_same(make(original["tokens"]), original["deconly_p5_causal"])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32])
def test_fake_prompt_is_ones_of_the_tokens_dtype(dtype):
  tokens = jnp.asarray(TOKENS, dtype)
  found = jax.jit(masks.add_fake_prompt(2))(tokens)
  assert_same(found, np.array(
      [[1, 1, 4, 9, 1, 0], [1, 1, 7, 1, 0, 0]], dtype))
  # The first token is a task's index and goes.
  found = jax.jit(masks.add_fake_prompt(2, multitask=True))(tokens)
  assert_same(found, np.array([[1, 1, 9, 1, 0], [1, 1, 1, 0, 0]], dtype))


def by_loops(prompt_length, sees):
  """[B, 1, P + T, P + T] of sees(row, query, key) among prompt and tokens."""
  size = prompt_length + TOKENS.shape[1]
  mask = np.zeros((len(TOKENS), 1, size, size))
  for row, tokens in enumerate(TOKENS):
    used = prompt_length + np.count_nonzero(tokens)
    for q in range(used):
      for k in range(used):
        mask[row, 0, q, k] = sees(row, q, k)
  return mask


@pytest.mark.parametrize("prompt_length", [0, 4, 100])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, bool])
def test_all_masks_by_loops(prompt_length, dtype):
  encoder = masks.create_prompt_encoder_mask(prompt_length)(TOKENS, dtype)
  decoder = masks.create_prompt_decoder_only_mask(prompt_length)
  inputs = np.array([2, 1])  # tokens of each row that see each other
  is_input = (np.arange(4) < inputs[:, None]).astype(np.int32)
  prefix = prompt_length + inputs
  for found, sees in (
      (encoder, lambda row, q, k: True),
      (decoder(TOKENS, None, dtype), lambda row, q, k: k <= q),
      (decoder(TOKENS, is_input, dtype),
       lambda row, q, k: k <= q or max(q, k) < prefix[row])):
    assert found.dtype == dtype
    np.testing.assert_array_equal(
        np.asarray(found, np.float64), by_loops(prompt_length, sees))


# ------------------------------------------------------ sets of attention names

WITHIN = {"": lambda q, k: q == k, "prompt->prompt": lambda q, k: True,
          "prompt->prompt;causal": lambda q, k: k <= q}


def test_masks_of_attention_sets_are_the_originals(original):
  """All six sets x encoder and decoder x with and without a task's token."""
  compared = 0
  for name, expected in original.items():
    side, names, multitask = (name.split("/") + ["", ""])[:3]
    if side not in ("ext_enc", "ext_dec"):
      continue
    names = [] if names == "none" else names.split("|")
    multitask = multitask == "mt1"
    arguments = [original["tokens"]]
    make = masks.prompt_encoder_attention_mask
    if side == "ext_dec":
      arguments.append(original["causal"])
      make = masks.prompt_decoder_attention_mask
    assert_same(jax.jit(make(5, names, multitask))(*arguments), expected)
    compared += 1
  assert compared == 24


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("prompt_sees_input", [False, True])
def test_attention_sets_by_loops(within, prompt_sees_input):
  names = [within] * bool(within) + ["prompt->input"] * prompt_sees_input

  def sees(_, q, k):
    if q >= 3:
      return True
    return WITHIN[within](q, k) if k < 3 else prompt_sees_input

  found = masks.prompt_encoder_attention_mask(3, names)(TOKENS)
  np.testing.assert_array_equal(found, by_loops(3, sees))
  inputs = np.array([2, 1])
  is_input = (np.arange(4) < inputs[:, None]).astype(np.int32)

  def decoder_sees(row, q, k):
    if q < 3:
      return sees(row, q, k) and k < 3 + inputs[row]
    return k <= q or max(q, k) < 3 + inputs[row]

  found = masks.prompt_decoder_attention_mask(3, names)(TOKENS, is_input)
  np.testing.assert_array_equal(found, by_loops(3, decoder_sees))


def test_no_set_is_full_visibility():
  """The original is causal within the prompt, and its decoder's crashes."""
  is_input = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], np.int32)
  np.testing.assert_array_equal(
      masks.prompt_encoder_attention_mask(3)(TOKENS),
      masks.create_prompt_encoder_mask(3)(TOKENS))
  for causal in (None, is_input):
    np.testing.assert_array_equal(
        masks.prompt_decoder_attention_mask(3)(TOKENS, causal),
        masks.create_prompt_decoder_only_mask(3)(TOKENS, causal))
  np.testing.assert_array_equal(
      masks.prompt_encoder_attention_mask(3, causal_by_default=True)(TOKENS),
      by_loops(3, lambda row, q, k: k <= q or q >= 3 or k >= 3))


def test_the_callers_set_stays_as_it_is():
  names = {"prompt->prompt", "prompt->prompt;causal"}
  with pytest.warns(UserWarning, match="will be causal"):
    found = masks.prompt_encoder_attention_mask(3, names)(TOKENS)
  np.testing.assert_array_equal(found, masks.prompt_encoder_attention_mask(
      3, ["prompt->prompt;causal"])(TOKENS))
  assert len(names) == 2


@pytest.mark.parametrize("make", [masks.prompt_encoder_attention_mask,
                                  masks.prompt_decoder_attention_mask])
@pytest.mark.parametrize("names", ["prompt", ["prompt->prompts"]])
def test_an_unknown_attention_is_named(make, names):
  with pytest.raises(errors.UserError, match="'prompts?.*prompt->prompt;c"):
    make(3, names)
