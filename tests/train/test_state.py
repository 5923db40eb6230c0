"""Splitting parameters by path, and putting them together again."""

import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.train import state

PARAMS = {
    "encoder": {
        "layers_0": {"mlp": {"wi": np.zeros(1)}},
        "layers_1": {"mlp": {"wi": np.ones(1)}},
        "prompt": {"prompt": {"prompt": np.full(1, 2.0)}}},
    "token_embedder": {"embedding": np.full(1, 3.0)}}
PROMPT = "encoder/prompt/prompt/prompt"


def identities(tree):
  return {path: id(leaf) for path, leaf in state.flatten(tree).items()}


@pytest.mark.parametrize("patterns, trainable", [
    ([".*/prompt/.*"], {PROMPT}),
    ([PROMPT], {PROMPT}),
    ([r".*/layers_\d+/.*", ".*/prompt/.*"],
     {PROMPT, "encoder/layers_0/mlp/wi", "encoder/layers_1/mlp/wi"}),
    ([".*"], set(state.flatten(PARAMS))),
    ([], set()),
])
def test_split_and_merge(patterns, trainable):
  chosen, frozen = state.split(PARAMS, patterns)
  assert set(state.flatten(chosen)) == trainable
  assert set(state.flatten(frozen)) == set(
      state.flatten(PARAMS)) - trainable
  # The leaves themselves, not copies: the base model may fill the memory.
  assert identities(chosen) | identities(frozen) == identities(PARAMS)
  merged = state.merge(chosen, frozen)
  assert identities(merged) == identities(PARAMS)
  assert merged.keys() == PARAMS.keys()


def test_a_pattern_must_match_the_whole_path():
  # The original's trap: a pattern with a slash too many trained nothing.
  for pattern in ("prompt", "encoder/prompt", ".*/prompt/prompt/prompt/.*",
                  "/encoder/prompt/.*", "Encoder/.*"):
    with pytest.raises(UserError, match="matches no parameter") as caught:
      state.split(PARAMS, [".*/embedding", pattern])
    assert repr(pattern) in str(caught.value)
    assert "encoder/layers_0/mlp/wi" in str(caught.value)  # what paths are
    if "prompt" in pattern:
      assert f"near it: {PROMPT}, " in str(caught.value)
    assert "TRAINABLE_REGEX" in str(caught.value)


@pytest.mark.parametrize("patterns", [
    [".+"], [".*", ".*/prompt/.*"], ["encoder/.*", ".*/embedding"]])
def test_everything_is_asked_for_in_one_way(patterns):
  """`.*` alone, see `test_split_and_merge`; all others are a slip."""
  with pytest.raises(UserError, match=r"all 4 param.*wi, .*write \['\.\*'\]"):
    state.split(PARAMS, patterns)


def test_a_malformed_pattern():
  with pytest.raises(UserError, match=r"'\*/prompt'.*not a regular expr"):
    state.split(PARAMS, ["*/prompt"])


def test_match_any():
  matches = state.match_any([".*/prompt/.*", "a+"])
  assert matches("x/prompt/y") and matches("aaa")
  assert not matches("aaab") and not matches("baaa")
  assert not matches("prompt/y")
  assert matches("aaa", np.zeros(1))  # the original passes the value too
  assert not state.match_any([])("a")


def test_flatten_and_unflatten():
  flat = state.flatten(PARAMS)
  assert list(flat) == [
      "encoder/layers_0/mlp/wi", "encoder/layers_1/mlp/wi", PROMPT,
      "token_embedder/embedding"]
  assert identities(state.unflatten(flat)) == identities(PARAMS)
