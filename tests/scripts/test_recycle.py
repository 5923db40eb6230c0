"""The command. Oracle: two bases whose embeddings are a known map apart."""

import json
import re

import numpy as np
import pytest

from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.formats import card, npy, t5x
from prompt_tuning.scripts import recycle

DRAW = np.random.default_rng(2)
TABLE = DRAW.normal(size=(60, 6)).astype(np.float32)
MAP = DRAW.normal(size=(6, 4)).astype(np.float32)
PROMPT = DRAW.normal(size=(3, 6)).astype(np.float32)


@pytest.fixture
def place(tmp_path):
  """Two T5X checkpoints, and a prompt of the first with its card."""
  for name, table in (("small", TABLE), ("large", TABLE @ MAP)):
    (tmp_path / name).mkdir()
    t5x.write(tmp_path / name / "checkpoint_5", base_lib.EMBEDDING, table, 5)
  npy.write(tmp_path / "sst2.npy", PROMPT)
  card.write_card(
      tmp_path / "sst2.npy", base_model="small/checkpoint_5",
      base_fingerprint=card.fingerprint(TABLE), task="sst2",
      metric={"accuracy": 91.0}, step=30, settings={})
  (tmp_path / "words.json").write_text(
      json.dumps({str(i): "x" for i in range(50, 10, -1)}))
  return tmp_path


def flags(place, **changes):
  given = {
      "source_model": place / "small/checkpoint_5",
      "target_model": place / "large/checkpoint_5",
      "prompt_path": place / "sst2.npy", "output_path": place / "out.npy",
      "num_words": 30, "word_offset": 2, "recycler": "v2v-lin"} | changes
  return [f"--{name}={value}" for name, value in given.items()]


@pytest.mark.parametrize("words", [True, False])
def test_a_recycled_prompt_has_its_targets_card(place, words, capsys):
  more = {"filtered_word": place / "words.json"} if words else {}
  recycle.main(flags(place, **more))
  out = str(place / "out.npy")
  assert capsys.readouterr().out == (
      f"{out}: 3 x 4, for large/checkpoint_5; the map leaves 0.00% of the "
      "variance of 30 words\n")
  np.testing.assert_allclose(npy.read(out), PROMPT @ MAP, rtol=1e-4, atol=1e-5)
  fingerprint = base_lib.fingerprint(place / "large/checkpoint_5")
  known = card.check(out, fingerprint, "large")
  assert (known.base_model, known.task, known.step, known.metric) == (
      "large/checkpoint_5", "sst2", 30, {})
  assert known.settings == {
      "recycled_from": "sst2.npy", "source_model": "small/checkpoint_5",
      "recycler": "v2v-lin", "num_words": 30, "word_offset": 2}


def test_the_network_learns(place, capsys):
  """Its settings come from the flags; more epochs leave less."""
  left = []
  for epochs in (1, 12):
    recycle.main(flags(
        place, recycler="v2v-nn", epochs=epochs, batch_size=10,
        learning_rate=0.02, hidden_scale=8))
    said = capsys.readouterr().out
    left.append(float(re.search(r"leaves (\S+)%", said)[1]))
  assert left[1] < left[0] / 4
  settings = card.read_card(place / "out.json").settings
  assert (settings["epochs"], settings["hidden_scale"]) == (12, 8)


def test_bad_input(place, capsys):
  t5x.write(place / "checkpoint_1", base_lib.EMBEDDING, TABLE[:40])
  npy.write(place / "narrow.npy", PROMPT[:, :4])
  for changes, words in (
      ({"source_model": place / "large/checkpoint_5"}, "was trained on the"),
      ({"source_model": place / "none"}, "There is no checkpoint folder"),
      ({"prompt_path": place / "none.npy"}, "There is no"),
      ({"prompt_path": place / "narrow.npy"}, "has width 4 and"),
      ({"target_model": place / "checkpoint_1"}, "needs one vocabulary"),
      ({"target_model": place / "checkpoint_1",
        "filtered_word": place / "words.json"}, "only 40 embeddings"),
      ({"num_words": 4000}, "want words of 60"),
      ({"epochs": 0}, "--epochs is 0"),
      ({"output_path": place / "none" / "out.npy"}, "cannot write")):
    with pytest.raises(SystemExit) as leaving:
      recycle.main(flags(place, **changes))
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said, said
  assert not (place / "out.npy").exists()
