"""Tests of scripts.subsample_vocab.

Oracle: NumPy's generator, called as the original's script does.
"""

import json

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.formats import t5x
from prompt_tuning.scripts import subsample_vocab

TABLE = np.arange(40, dtype=np.float32).reshape(20, 2)


@pytest.fixture
def checkpoint(tmp_path):
  path = tmp_path / "checkpoint_3"
  t5x.write_all(path, [
      ("token_embedder/embedding", TABLE), ("encoder/encoder_norm/scale",
                                            np.ones(2, np.float32))])
  return path


def draw(checkpoint, output, *flags):
  subsample_vocab.main([
      f"--checkpoint_dir={checkpoint}", f"--output_path={output}", *flags])
  return np.load(output)


@pytest.mark.parametrize("population", [5, 0, -1, 20])
def test_rows_of_the_embedding_table(tmp_path, checkpoint, population):
  found = draw(
      checkpoint, tmp_path / "new/rows.npy", "--prompt_length=30",
      f"--population_size={population}", "--seed=7")
  rng = np.random.default_rng(7)
  wanted = (TABLE[rng.choice(population, 30)] if population > 0
            else rng.choice(TABLE, 30))
  np.testing.assert_array_equal(found, wanted)


def test_a_small_table_is_drawn_from_whole(tmp_path, checkpoint, capsys):
  found = draw(checkpoint, tmp_path / "rows.npy")
  assert found.shape == (100, 2) and found.max() == TABLE.max()
  assert capsys.readouterr().out.endswith("rows.npy: 100 of 20 rows\n")


def test_a_word_list_leaves_rows_out(tmp_path, checkpoint):
  words = tmp_path / "words.json"
  words.write_text(json.dumps({"17": "b", "3": "a", "19": "c"}))
  found = draw(checkpoint, tmp_path / "rows.npy", f"--word_list={words}")
  assert set(map(tuple, found)) == set(map(tuple, TABLE[[3, 17, 19]]))
  found = draw(
      checkpoint, tmp_path / "rows.npy", f"--word_list={words}",
      "--population_size=2")
  assert set(map(tuple, found)) == set(map(tuple, TABLE[[3, 17]]))


def test_bad_input(tmp_path, checkpoint, capsys):
  words, output = tmp_path / "words.json", tmp_path / "rows.npy"
  for content, flags, message in (
      ("{}", (f"--word_list={words}",), "it has no ids"),
      ('{"-1": "a"}', (f"--word_list={words}",), "an id is negative"),
      ('{"a": "a"}', (f"--word_list={words}",), "is not a word list"),
      ("[3]", (f"--word_list={words}",), "is not a word list"),
      ('{"20": "a"}', (f"--word_list={words}",), "and the table 20 rows"),
      ("", (f"--word_list={tmp_path / 'no'}",), "cannot read the word list"),
      ("", ("--prompt_length=0",), "must be 1 or more"),
      ("", ("--seed=-1",), "0 or more"),
      ("", ("--embeddings_path=encoder/encoder_norm/scale",), "(2,)"),
      ("", ("--embeddings_path=encoder/prompt",), "nearest names")):
    words.write_text(content)
    with pytest.raises(SystemExit) as leaving:
      draw(checkpoint, output, *flags)
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not output.exists()


def test_ids_are_checked():
  with pytest.raises(errors.UserError, match="the id 9"):
    subsample_vocab.draw(9, 1, words={9: "a"})
