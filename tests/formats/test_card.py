"""Cards: what belongs together passes, everything else is refused."""

import dataclasses
import hashlib
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.formats import card, npy

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(5000, 8)).astype(np.float32)
BASE = card.fingerprint(TABLE)


@pytest.fixture(name="prompt")
def fixture_prompt(tmp_path):
  path = tmp_path / "sst2.npy"
  npy.write(path, RNG.normal(size=(5, 8)))
  return path


def write(prompt, **changes):
  return card.write_card(prompt, **{
      "base_model": "small", "base_fingerprint": BASE, "task": "sst2",
      "metric": {"accuracy": np.float32(91.5)}, "step": 30_000,
      "settings": {"PROMPT_LENGTH": 5}} | changes)


def test_round_trip(prompt):
  written = write(prompt)
  assert card.check(prompt, BASE, "small") == written
  assert card.read_card(prompt.with_suffix(".json")) == written
  assert written.shape == (5, 8)
  assert written.sha256 == hashlib.sha256(prompt.read_bytes()).hexdigest()
  assert written.versions["numpy"] == np.__version__


def test_card_is_plain_json(prompt):
  write(prompt, settings={"function": test_round_trip})
  content = json.loads((prompt.parent / "sst2.json").read_text())
  assert content["metric"] == {"accuracy": 91.5}
  assert "test_round_trip" in content["settings"]["function"]
  assert set(content) == {f.name for f in dataclasses.fields(card.Card)}


def test_name_without_suffix_keeps_its_dots():
  assert card.card_path("a/b.npy") == "a/b.json"
  assert card.card_path("a/encoder.prompt.prompt.prompt") == (
      "a/encoder.prompt.prompt.prompt.json")


def test_prompt_without_a_card_is_let_pass(prompt):
  assert card.check(prompt, BASE, "small") is None


def test_other_base_is_refused_with_both_names(prompt):
  write(prompt)
  other = card.fingerprint(TABLE * 2)
  with pytest.raises(UserError, match="'small'.*'large'"):
    card.check(prompt, other, "large")


def test_every_flipped_bit_of_the_prompt_is_detected(prompt):
  write(prompt)
  content = prompt.read_bytes()
  for position in RNG.choice(len(content) * 8, 200, replace=False):
    damaged = bytearray(content)
    damaged[position // 8] ^= 1 << (position % 8)
    prompt.write_bytes(damaged)
    with pytest.raises(UserError, match="sst2.npy"):
      card.check(prompt, BASE, "small")


def test_fingerprint_is_of_the_values_not_of_the_precision():
  half = TABLE.astype(ml_dtypes.bfloat16)
  assert card.fingerprint(half) == BASE
  assert card.fingerprint(half.astype(np.float32)) == BASE
  assert card.fingerprint(jnp.asarray(TABLE)) == BASE
  assert card.fingerprint(jnp.asarray(TABLE, jnp.bfloat16)) == BASE


def test_fingerprint_tells_tables_apart():
  last = TABLE.copy()
  last[-1, -1] += 1
  tables = [TABLE, last, TABLE[::-1], TABLE[:-1], TABLE.reshape(2500, 16)]
  assert len({card.fingerprint(t) for t in tables}) == len(tables)


@pytest.mark.parametrize("text", [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"{}",
    b" " * (1 << 20) + b"{}"])
def test_damaged_cards_are_refused(prompt, text):
  (prompt.parent / "sst2.json").write_bytes(text)
  with pytest.raises(UserError, match="sst2.json"):
    card.check(prompt, BASE, "small")


@pytest.mark.parametrize("field", [
    f.name for f in dataclasses.fields(card.Card)])
def test_missing_and_mistyped_fields_are_named(prompt, field):
  write(prompt)
  path = prompt.parent / "sst2.json"
  content = json.loads(path.read_text())
  for broken in (content | {field: None},
                 {k: v for k, v in content.items() if k != field}):
    path.write_text(json.dumps(broken))
    with pytest.raises(UserError, match=field):
      card.read_card(path)


def test_unknown_fields_are_let_pass(prompt):
  written = write(prompt)
  path = prompt.parent / "sst2.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"new": 1}))
  assert card.read_card(path) == written


def test_absent_prompt_or_card(tmp_path):
  with pytest.raises(UserError, match="absent"):
    write(tmp_path / "absent.npy")
  with pytest.raises(UserError, match="absent"):
    card.read_card(tmp_path / "absent.json")
