"""Prompts and initialisers against the rows they are made of."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import prompts
from prompt_tuning.errors import UserError
from prompt_tuning.models import t5
from prompt_tuning.train import prompts as train_prompts

KEY = jax.random.PRNGKey(7)
TABLE = np.random.RandomState(0).randn(11, 4).astype(np.float32)


class Words:
  """A vocabulary in which a word is the pieces whose numbers it lists."""

  def encode(self, text):
    return [int(piece) for piece in text.split()]


@pytest.fixture(autouse=True)
def no_unexpected_warnings():
  with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    yield


def run(initializer, shape, jit):
  """The prompt; with `jit` the shape is static, as under Linen."""
  function = functools.partial(initializer, shape=shape)
  return (jax.jit(function) if jit else function)(KEY)


jitted = pytest.mark.parametrize("jit", [False, True])


@jitted
def test_expand_to_batch(jit):
  prompt, tokens = TABLE[:3], np.zeros((5, 7), np.int32)
  expand = prompts.expand_to_batch
  found = (jax.jit(expand) if jit else expand)(jnp.asarray(prompt), tokens)
  assert found.shape == (5, 3, 4)
  for row in found:
    np.testing.assert_array_equal(row, prompt)


# ----------------------------------------------------------------- from_array


@jitted
def test_from_array(jit):
  found = run(prompts.from_array(TABLE), (11, 4), jit)
  np.testing.assert_array_equal(found, TABLE)
  assert found.dtype == jnp.float32
  found = run(prompts.from_array(TABLE.astype(jnp.bfloat16)), (11, 4), jit)
  assert found.dtype == jnp.float32


@pytest.mark.parametrize("shape", [(10, 4), (11, 5), (4, 11), (44,)])
def test_from_array_of_another_shape(shape):
  with pytest.raises(UserError) as caught:
    prompts.from_array(TABLE)(KEY, shape)
  assert "(11, 4)" in str(caught.value) and str(shape) in str(caught.value)
  assert "PROMPT_LENGTH" in str(caught.value)


@jitted
def test_from_a_file_of_the_original(shared_data, jit):
  path = shared_data / "t5x" / "prompt_5x256.npy"
  found = run(prompts.from_array(prompts.np_load(path)), (5, 256), jit)
  expected = np.load(path, allow_pickle=False)
  np.testing.assert_array_equal(found, expected.astype(np.float32))
  assert prompts.np_load(path, jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", [
    "token_embedder/embedding", "target/token_embedder/embedding",
    "/token_embedder/embedding"])
def test_from_a_checkpoint_of_t5x(shared_data, name):
  folder = shared_data / "t5x" / "test_t5_1_1_tiny" / "checkpoint_3"
  table = prompts.t5x_load(str(folder), name)
  assert table.shape == (32128, 4)
  np.testing.assert_array_equal(
      run(prompts.from_array(table), (32128, 4), False), table)
  # gin asks again for every trace; the file is not read again.
  assert prompts.t5x_load(str(folder), name) is table
  chosen = run(prompts.from_sample_of_embeddings(table, 20), (6, 4), True)
  assert all(row in table[:20].tolist() for row in chosen.tolist())


def test_a_checkpoint_without_the_array(shared_data):
  folder = shared_data / "t5x" / "test_t5_1_1_tiny" / "checkpoint_3"
  with pytest.raises(UserError, match="encoder/prompt.*nearest"):
    prompts.t5x_load(str(folder), "encoder/prompt")
  with pytest.raises(UserError, match="no checkpoint folder"):
    prompts.t5x_load(str(folder / "absent"), "token_embedder/embedding")
  with pytest.raises(UserError, match="absent.npy"):
    prompts.np_load(str(folder / "absent.npy"))


# -------------------------------------------------- from_sample_of_embeddings


@jitted
@pytest.mark.parametrize("population, size", [(None, 11), (11, 11), (6, 6)])
def test_samples_are_the_rows_that_choice_draws(population, size, jit):
  initializer = prompts.from_sample_of_embeddings(TABLE, population)
  found = run(initializer, (5, 4), jit)
  rows = jax.random.choice(KEY, size, (5,), False)
  np.testing.assert_array_equal(found, TABLE[rows])
  assert len(set(np.asarray(rows).tolist())) == 5
  other = initializer(jax.random.PRNGKey(8), (5, 4))
  assert not np.array_equal(found, other)


@jitted
def test_samples_of_a_small_population_repeat(jit):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    initializer = prompts.from_sample_of_embeddings(TABLE, 3)
    found = run(initializer, (5, 4), jit)
  with pytest.warns(UserWarning, match="length 5.*population of 3.*repeat"):
    initializer(KEY, (5, 4))
  np.testing.assert_array_equal(
      found, TABLE[jax.random.choice(KEY, 3, (5,), True)])


def test_population_beyond_the_table_is_the_table():
  with pytest.warns(UserWarning, match="population_size 12.*11 rows"):
    initializer = prompts.from_sample_of_embeddings(TABLE, 12)
  np.testing.assert_array_equal(
      initializer(KEY, (5, 4)),
      prompts.from_sample_of_embeddings(TABLE)(KEY, (5, 4)))


@pytest.mark.parametrize("population", [0, -1])
def test_population_must_be_positive(population):
  with pytest.raises(UserError, match=f"positive, not {population}"):
    prompts.from_sample_of_embeddings(TABLE, population)


def test_the_name_in_the_originals_readme():
  assert (prompts.from_samples_of_embeddings
          is prompts.from_sample_of_embeddings)


# ------------------------------------------ from_embedded_list and ..._string


def sevens(rng, shape):
  del rng
  return jnp.full(shape, 7.0)


@jitted
def test_a_list_gives_means_of_pieces_and_the_rest(jit):
  initializer = prompts.from_embedded_list(
      TABLE, Words(), ["1 2 3", "4", "9 9 1"], sevens)
  found = run(initializer, (5, 4), jit)
  np.testing.assert_allclose(found[0], (TABLE[1] + TABLE[2] + TABLE[3]) / 3,
                             rtol=1e-6)
  np.testing.assert_array_equal(found[1], TABLE[4])
  np.testing.assert_allclose(found[2], (2 * TABLE[9] + TABLE[1]) / 3,
                             rtol=1e-6)
  np.testing.assert_array_equal(found[3:], 7.0)
  assert found.dtype == jnp.float32


@jitted
def test_a_string_gives_its_pieces_and_the_rest(jit):
  found = run(prompts.from_embedded_string(
      TABLE, Words(), "5 0 5", sevens), (5, 4), jit)
  np.testing.assert_array_equal(found[:3], TABLE[[5, 0, 5]])
  np.testing.assert_array_equal(found[3:], 7.0)
  assert found.dtype == jnp.float32


@pytest.mark.parametrize("initializer", [
    prompts.from_embedded_list(TABLE, Words(), ["3", "4"]),
    prompts.from_embedded_string(TABLE, Words(), "3 4")])
def test_the_rest_is_uniform_below_a_hundredth(initializer):
  found = run(initializer, (200, 4), False)
  np.testing.assert_array_equal(found[:2], TABLE[3:5])
  rest = np.asarray(found[2:])
  assert 0 <= rest.min() < 0.001 and 0.009 < rest.max() < 0.01


def test_more_texts_or_pieces_than_positions():
  for initializer, warning in (
      (prompts.from_embedded_list(TABLE, Words(), ["1", "2", "3"], sevens),
       "3 texts.*length 2.*last 1"),
      (prompts.from_embedded_string(TABLE, Words(), "1 2 3", sevens),
       "3 pieces.*length is 2.*cut")):
    with pytest.warns(UserWarning, match=warning):
      found = initializer(KEY, (2, 4))
    np.testing.assert_array_equal(found, TABLE[1:3])


@pytest.mark.parametrize("length", [2, 3, 8])
def test_a_text_repeats_until_the_prompt_is_full(length):
  """Oracle: what PEFT's TEXT initialisation does with the ids."""
  ids = [5, 0, 5]
  expected = (ids * math.ceil(length / len(ids)))[:length]
  initializer = prompts.from_embedded_string(
      TABLE, Words(), "5 0 5", sevens, repeat=True)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = initializer(KEY, (length, 4))
  np.testing.assert_array_equal(found, TABLE[expected])
  assert bool(caught) == (length < len(ids))


def test_nothing_cannot_repeat():
  initializer = prompts.from_embedded_string(
      TABLE, Words(), "", sevens, repeat=True)
  with pytest.raises(UserError, match="PROMPT_TEXT.*no pieces"):
    initializer(KEY, (2, 4))


def test_nothing_to_embed_leaves_the_initializer():
  for initializer in (
      prompts.from_embedded_list(TABLE, Words(), [], sevens),
      prompts.from_embedded_string(TABLE, Words(), "", sevens)):
    np.testing.assert_array_equal(initializer(KEY, (2, 4)), 7.0)


def test_a_text_without_pieces_is_refused():
  """Its mean would be NaN, and so would the first loss."""
  with pytest.raises(UserError, match="''.*no pieces"):
    prompts.from_embedded_list(TABLE, Words(), ["1", ""])(KEY, (2, 4))


@pytest.mark.parametrize("initializer", [
    prompts.from_embedded_list(TABLE, Words(), ["3", "20"]),
    prompts.from_embedded_string(TABLE, Words(), "3 20")])
def test_pieces_beyond_the_table_are_refused(initializer):
  with pytest.raises(UserError, match=r"piece 20.*11 rows.*vocabulary"):
    initializer(KEY, (2, 4))


@pytest.mark.parametrize("initializer", [
    prompts.from_sample_of_embeddings(TABLE),
    prompts.from_embedded_list(TABLE, Words(), ["1"]),
    prompts.from_embedded_string(TABLE, Words(), "1")])
def test_a_table_of_another_width(initializer):
  with pytest.raises(UserError, match=r"\(11, 4\).*width 5"):
    initializer(KEY, (3, 5))


# -------------------------------------------------------------------- modules


def test_prompt_is_one_float32_parameter():
  prompt = prompts.Prompt(length=3, dtype=jnp.bfloat16,
                          prompt_init=prompts.from_array(TABLE[:3]))
  tokens, embedded = np.ones((2, 5), np.int32), jnp.ones((2, 5, 4))
  found, variables = prompt.init_with_output(KEY, tokens, embedded)
  assert found.shape == (3, 4)  # not batched
  assert found.dtype == jnp.bfloat16
  (name, parameter), = variables["params"].items()
  assert name == "prompt" and parameter.dtype == jnp.float32
  np.testing.assert_array_equal(parameter, TABLE[:3])
  assert variables["params_axes"]["prompt_axes"].names == (
      "prompt", "prompt_embed")


def test_prompt_is_initialised_under_jit_as_outside():
  prompt = prompts.Prompt(4, prompts.from_sample_of_embeddings(TABLE))
  arguments = KEY, np.ones((2, 5), np.int32), jnp.ones((2, 5, 4))
  np.testing.assert_array_equal(
      jax.jit(prompt.init)(*arguments)["params"]["prompt"],
      prompt.init(*arguments)["params"]["prompt"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_inference_only_prompt_has_no_parameter(dtype):
  prompt = prompts.InferenceOnlyPrompt(
      3, 4, prompts.from_array(TABLE[:3]), dtype)
  tokens, embedded = np.ones((2, 5), np.int32), jnp.ones((2, 5, 4))
  assert prompt.init(KEY, tokens, embedded) == {}
  found = jax.jit(prompt.apply)({}, tokens, embedded)
  assert found.dtype == dtype
  np.testing.assert_array_equal(found, TABLE[:3].astype(dtype))


def test_a_model_with_an_inference_only_prompt_has_none_to_load():
  module = t5.EncoderDecoder(
      t5.Config(20, 4, 1, 4, 8, 1, 1), functools.partial(
          train_prompts.Prompt, prompt=prompts.InferenceOnlyPrompt(
              3, 4, prompts.from_array(TABLE[:3]))))
  tokens = np.ones((1, 2), np.int32)
  shapes = jax.eval_shape(functools.partial(
      module.init, enable_dropout=False), KEY, tokens, tokens)["params"]
  assert "prompt" not in shapes["encoder"]
