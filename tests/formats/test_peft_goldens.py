"""Adapters that PEFT wrote give PEFT's logits and PEFT's generations.

Oracle: PEFT 0.20.1 on transformers 4.57.6 (`shared_data/peft_adapters`), tiny
random GPT-2, Llama, T5 and BART; adapters as created and with every array
perturbed.
"""

import contextlib
import dataclasses
import functools
import types
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import methods
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.checkpoints import families
from prompt_tuning.decoding import beam, greedy
from prompt_tuning.formats import peft
from prompt_tuning.methods import interception, multitask
from prompt_tuning.models import (
  bart,
  causal_lm,
  decoder_only,
  encoder_decoder,
  layers,
  t5,
)

CAUSAL = [
    "prompt_gpt2", "prompt_gpt2_rep", "ptuning_gpt2", "ptuning_lstm_gpt2",
    "prefix_gpt2", "prefix_gpt2_proj", "prefix_llama", "mpt_gpt2", "ia3_gpt2",
    "lora_gpt2", "lora_llama"]
ENCODER_DECODER = ["prompt_t5", "prefix_t5", "mpt_t5", "ia3_t5", "prefix_bart"]
ONLY_INITIAL = ("prefix_llama", "lora_llama", "prefix_bart")
CASES = [
    (state, name) for state in ("initial", "trained")
    for name in CAUSAL + ENCODER_DECODER
    if state == "initial" or name not in ONLY_INITIAL]
TASK_IDS = (0, 1)  # what the multitask cases gave each row
NEW_TOKENS = 6
VOCABULARY = types.SimpleNamespace(eos_id=1, pad_id=0)


@dataclasses.dataclass(frozen=True)
class Base:
  """A base model of the goldens."""

  sizes: peft.Base
  config: Any
  params: dict

  def module(self, **doors):
    kind = {t5.Config: t5.EncoderDecoder, bart.Config: bart.EncoderDecoder,
            causal_lm.Config: causal_lm.CausalLM}[type(self.config)]
    return kind(self.config, **doors)

  @property
  def pad_id(self):
    return getattr(self.config, "pad_id", VOCABULARY.pad_id)

  def model(self, module, **options):
    if self.sizes.is_encoder_decoder:
      return encoder_decoder.EncoderDecoderModel(
          module, VOCABULARY, VOCABULARY, **options)
    return decoder_only.DecoderOnlyModel(module, VOCABULARY, **options)

  def with_params(self, extra):
    flat = flax.traverse_util.flatten_dict(self.params, sep="/")
    flat |= flax.traverse_util.flatten_dict(extra, sep="/")
    return flax.traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def goldens(shared_data):
  """Opens (state, name): base, adapter and expectation."""

  @functools.cache
  def open_base(state, family):
    path = shared_data / f"peft_adapters/{state}/expected/base_{family}"
    weights = base_lib.open_base(path)
    config = families.of_type(weights.family, path).Config(**weights.config)
    base = Base(peft.Base.of(weights), config, {})
    shapes, _ = base.model(base.module()).abstract()
    return dataclasses.replace(base, params=base_lib.load_base(path, shapes))

  def open_case(state, name):
    folder = shared_data / "peft_adapters" / state
    family = next(
        f for f in ("gpt2", "llama", "t5", "bart") if f in name.split("_"))
    with np.load(folder / f"expected/{name}.npz") as file:
      expected = dict(file)
    return (open_base(state, family), peft.load(folder / f"adapters/{name}"),
            expected)

  return open_case


# ----------------------------------------------------------------------- logits


def tasks_of(adapter):
  return TASK_IDS if adapter.type == "MULTITASK_PROMPT_TUNING" else (0, 0)


def by_row(function, adapter):
  """Each row with its own task of a multitask prompt."""
  first, second = tasks_of(adapter)
  out = function(first)
  return out if first == second else np.stack([out[0], function(second)[1]])


def peft_positions(length, adapter):
  """PEFT counts padding: [prompt][padding][text] are 0, 1, 2, ….

  Ours count what is visible, so that padding changes nothing.
  """
  before = adapter.config.get("num_virtual_tokens") or 0
  return before + np.arange(length)[None]


def causal_logits(base, adapter, expected, visible):
  params = base.with_params(peft.to_params(adapter, base.sizes))
  tokens = jnp.asarray(expected["input_ids"])
  positions = jnp.asarray(peft_positions(tokens.shape[1], adapter))

  def run(task):
    module = base.module(**peft.arguments(adapter, base.sizes, task))
    with interception.applied(peft.delta(adapter, base.sizes)):
      return np.asarray(module.apply(
          {"params": params}, tokens, visible=jnp.asarray(visible),
          positions=jnp.repeat(positions, 2, axis=0)))

  return by_row(run, adapter)


def encoder_decoder_logits(base, adapter, expected, visible):
  """PEFT's enc-dec layout: a multitask prompt is before the decoder, too."""
  extra = peft.to_params(adapter, base.sizes)
  params = base.with_params(extra)
  inputs = jnp.where(visible, expected["input_ids"], base.pad_id)
  targets = np.pad(
      expected["labels"][:, :-1], ((0, 0), (1, 0)),
      constant_values=getattr(base.config, "start_id", 0))

  def run(task):
    module = base.module(**peft.arguments(adapter, base.sizes, task))
    context = interception.applied(peft.delta(adapter, base.sizes))
    if adapter.type == "MULTITASK_PROMPT_TUNING":
      half = extra["decoder"]["prompt"]["prompt"]
      length, width = half["prompt"].shape
      context = nn.intercept_methods(peft.decoder_prompt(methods.folded(
          multitask.MultitaskPrompt(length, 3, 2, task), half, width)))
    with context:
      return np.asarray(module.apply(
          {"params": params}, inputs, jnp.asarray(targets),
          enable_dropout=False))

  return by_row(run, adapter)


@pytest.mark.parametrize("padding", ["nopad", "leftpad"])
@pytest.mark.parametrize("state, name", CASES)
def test_logits(goldens, state, name, padding):
  base, adapter, expected = goldens(state, name)
  visible = expected["attention_mask"].astype(bool)
  if padding == "nopad":
    visible = np.ones_like(visible)
  want = expected[f"logits_{padding}"]
  if base.sizes.is_encoder_decoder:
    got = encoder_decoder_logits(base, adapter, expected, visible)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    return
  got = causal_logits(base, adapter, expected, visible)
  want = want[:, -got.shape[1]:]  # PEFT's are P longer for prompts
  np.testing.assert_allclose(got[visible], want[visible], rtol=0, atol=1e-5)


# ------------------------------------------------------------------ generations


def as_plain_prompt(base, adapter, task):
  """One task of a multitask prompt as the prompt that it stands for."""
  path = base.sizes.prompt_path.split("/")
  table = functools.reduce(
      lambda tree, key: tree[key], path, peft.to_params(adapter, base.sizes))
  length, width = table["prompt"].shape
  plain = methods.folded(
      multitask.MultitaskPrompt(length, 3, 2, task), table, width)
  params = flax.traverse_util.unflatten_dict({(*path, "prompt"): plain})
  return peft.from_params(params, base.sizes, "PROMPT_TUNING")


def batch_of(base, expected):
  tokens, mask = expected["input_ids"], expected["attention_mask"].astype(bool)
  rows, length = tokens.shape
  empty = jnp.zeros((rows, NEW_TOKENS), jnp.int32)
  if base.sizes.is_encoder_decoder:
    return {"encoder_input_tokens": jnp.where(mask, tokens, base.pad_id),
            "decoder_target_tokens": empty}
  packed = np.zeros((rows, length + NEW_TOKENS), np.int32)
  for row, (ids, seen) in enumerate(zip(tokens, mask)):
    packed[row, :seen.sum()] = ids[seen]
  last = mask.sum(1)[:, None] - 1
  return {"decoder_input_tokens": jnp.asarray(packed),
          "decoder_target_tokens": empty,
          "decoder_target_positions": jnp.asarray(
              last + np.arange(NEW_TOKENS))}


SEARCHES = {
    "gen_beam1": greedy.greedy,
    "gen_beam3": functools.partial(
        beam.beam_search, num_beams=3, alpha=1.0, rules="hugging_face",
        penalty=beam.hugging_face_length)}


def forces_end(base):
  """Whether the base's config.json has `forced_eos_token_id`, which is 2."""
  return isinstance(base.config, bart.Config)


def counts_padding(base, adapter):
  """PEFT generates with `peft_positions` behind prompts, and only there."""
  return (not base.sizes.is_encoder_decoder
          and adapter.type in ("PROMPT_TUNING", "P_TUNING"))


def search_with_peft_positions(base, adapter, doors, search):
  """Decodes left-padded inputs, each step run on the whole text again."""
  module = base.module(**doors)

  def run(params, tokens, visible):
    length = tokens.shape[1]
    positions = jnp.asarray(peft_positions(length + NEW_TOKENS - 1, adapter))

    def step(new, cache):
      at = cache["cache_index"]
      text = jax.lax.dynamic_update_slice(cache["text"], new, (0, at))
      logits = module.apply(
          {"params": params}, text, visible=cache["visible"],
          positions=jnp.repeat(positions, len(text), axis=0))
      logits = jax.lax.dynamic_index_in_dim(logits, at, 1, keepdims=False)
      return logits, {"text": text, "visible": cache["visible"],
                      "cache_index": at + 1}

    room = ((0, 0), (0, NEW_TOKENS - 1))
    cache = {"text": jnp.pad(tokens, room),
             "visible": jnp.pad(visible, room, constant_values=True),
             "cache_index": jnp.int32(length - 1)}
    out, _ = SEARCHES[search](
        step, cache, batch_size=len(tokens), max_length=NEW_TOKENS,
        eos_id=VOCABULARY.eos_id, start_id=tokens[:, -1])
    return out.reshape(len(tokens), -1, NEW_TOKENS)[:, 0]

  return run


def without_prefix_positions(length):
  """PEFT's T5 forgets, when it generates, that a prefix stands before it.

  Its first query is at position 0, where it is at `length` in training: biases
  are those of other distances, and causality hides what seems to come later.
  """

  def intercept(next_function, arguments, options, context):
    if (not isinstance(context.module, layers.RelativePositionBias)
        or context.module.path[0] != "decoder"):
      return next_function(*arguments, **options)
    query, key = arguments
    key = key + length
    bias = next_function(query, key, **options)
    return bias + jnp.where(key[None] > query[:, None], layers.MASKED, 0.0)

  return intercept


def without_prefix_of_later_positions(length):
  """The same of PEFT's BART: a query at step i sees the first i + 1 keys.

  The prefix's come first among them, so that the tokens before the query are
  hidden until the whole prefix is seen.
  """

  def intercept(next_function, arguments, options, context):
    module = context.module
    if not (isinstance(module, layers.Attention)
            and context.method_name == "__call__"
            and options.get("decode")
            and module.has_variable("cache", "cache_index")):
      return next_function(*arguments, **options)
    step = module.get_variable("cache", "cache_index")
    size = module.get_variable("cache", "cached_key").shape[2]
    seen = layers.key_mask(jnp.arange(length + size)[None] <= step)
    x, memory, _ = arguments
    return next_function(
        x, memory, seen[..., length:],
        **options | {"prefix_bias": seen[..., :length]})

  return intercept


@pytest.fixture(scope="module")
def generate():
  """Decodes; what two cases have in common is compiled once."""
  compiled = {}

  def run(base, adapter, expected, search):
    doors = peft.arguments(adapter, base.sizes)
    has_positions = doors.pop("prefix_has_positions", False)
    delta = peft.delta(adapter, base.sizes)
    params = base.with_params(peft.to_params(adapter, base.sizes))
    arguments = params, batch_of(base, expected)
    decode_fn = SEARCHES[search]
    if forces_end(base) and search != "gen_beam1":
      decode_fn = functools.partial(decode_fn, forced_eos_id=2)
    function = functools.partial(
        lambda **options: base.model(base.module(**doors), **options).predict,
        decode_fn=decode_fn, delta=delta)
    if counts_padding(base, adapter):
      function = functools.partial(
          search_with_peft_positions, base, adapter, doors, search)
      arguments = (params, jnp.asarray(expected["input_ids"]),
                   jnp.asarray(expected["attention_mask"], bool))
    key = (base.config, search, tuple(doors), delta,
           adapter.config.get("num_virtual_tokens"))
    if key not in compiled:
      compiled[key] = jax.jit(function())
    context = contextlib.nullcontext()
    if "decoder_prefix_factory" in doors:
      forget = (without_prefix_of_later_positions
                if has_positions
                else without_prefix_positions)
      context = nn.intercept_methods(
          forget(adapter.config["num_virtual_tokens"]))
    with context:
      return np.asarray(compiled[key](*arguments))

  return run


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("state, name", CASES)
def test_generations(goldens, generate, state, name, search):
  base, adapter, expected = goldens(state, name)

  def run(task):
    plain = adapter
    if adapter.type == "MULTITASK_PROMPT_TUNING":
      plain = as_plain_prompt(base, adapter, task)
    return generate(base, plain, expected, search)

  got = by_row(run, adapter)
  if forces_end(base) and search == "gen_beam1":
    got = np.concatenate(  # greedy search has no forced tokens
        [got[:, :-1], np.full_like(got[:, -1:], 2)], axis=1)
  np.testing.assert_array_equal(got, expected[search][:, -NEW_TOKENS:])
