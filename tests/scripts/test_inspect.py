"""Tests of scripts.inspect.

Oracles: brute force over the whole table, scipy's cosines, prompts made of
known embeddings, and the norms published of the original's prompts.
"""

import numpy as np
import pytest
from scipy.spatial import distance

from prompt_tuning import errors, pretrained
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.data import vocabularies
from prompt_tuning.formats import npy
from prompt_tuning.scripts import convert, inspect

_PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def table():
  return base_lib.read_embedding_table(pretrained.path(), np.float32)


def test_neighbours_are_those_of_brute_force(monkeypatch):
  monkeypatch.setattr(inspect, "_ROWS", 7)  # several blocks, one not full
  draw = np.random.default_rng(0)
  prompt = draw.normal(size=(5, 6)).astype(np.float32)
  rows = draw.normal(size=(40, 6)).astype(np.float32)
  found = inspect.inspect(prompt, rows, 3)
  for neighbours, apart, sign in (
      (found.by_cosine, 1 - distance.cdist(prompt, rows, "cosine"), -1),
      (found.by_distance, distance.cdist(prompt, rows), 1)):
    order = np.argsort(sign * apart, 1)[:, :3]
    np.testing.assert_array_equal(neighbours.ids, order)
    np.testing.assert_allclose(
        neighbours.values, np.take_along_axis(apart, order, 1), rtol=1e-12)
  np.testing.assert_allclose(found.norms, np.linalg.norm(prompt, axis=1))
  assert found.table_norm == pytest.approx(np.linalg.norm(rows, axis=1).mean())


def test_an_embedding_is_its_own_neighbour(table):
  """Scaled, it keeps its direction; the distance then is what was added."""
  ids = pretrained.vocabulary().encode("return the array")
  found = inspect.inspect(np.concatenate([table[ids], 1.5 * table[ids]]), table)
  assert found.by_cosine.ids[:, 0].tolist() == ids + ids
  np.testing.assert_allclose(found.by_cosine.values[:, 0], 1, rtol=1e-6)
  assert found.by_distance.ids[:len(ids), 0].tolist() == ids
  np.testing.assert_array_equal(found.by_distance.values[:len(ids), 0], 0)
  words = inspect.pieces(found, pretrained.vocabulary())
  assert [words[i] for i in ids] == ["▁return", "▁the", "▁array"]


def test_clusters():
  """Positions 1, 3 and 4 point one way, 0 and 5 another, 2 to nothing."""
  a, b = np.eye(2)
  prompt = np.stack([b, a, 0 * a, 3 * a, a + 0.1 * b, 2 * b])
  found = inspect.inspect(prompt)
  assert found.clusters.tolist() == [1, 0, 2, 0, 0, 1]
  np.testing.assert_allclose(found.norms[:4], [1, 1, 0, 3])
  assert set(inspect.inspect(prompt, threshold=-1).clusters) == {0}
  assert len(set(inspect.inspect(prompt[[0, 1, 4]], threshold=1).clusters)) == 3
  assert inspect.inspect(prompt[:1]).clusters.tolist() == [0]
  text = inspect.report(found, {})
  assert "6 positions in 3 clusters" in text
  assert "| 0       | 1 3 4     |" in text


@pytest.fixture
def prompts(tmp_path, table):
  """One prompt in each format: the embeddings of pieces 10 to 13."""
  path = str(tmp_path / "prompt.npy")
  npy.write(path, table[10:14])
  made = [path, str(tmp_path / "adapter"), str(tmp_path / "checkpoint_1")]
  for other in made[1:]:
    convert.convert(path, other, pretrained.path())
  return [*made, f"{made[2]}/target.encoder.prompt.prompt.prompt"]


def test_every_format(prompts, table):
  for path in prompts:
    np.testing.assert_array_equal(convert.read(path), table[10:14])


def test_the_tables_and_the_picture(tmp_path, prompts, capsys):
  picture = tmp_path / "picture.png"
  inspect.main([
      f"--prompt={prompts[-1]}", "--base=default", "--neighbours=2",
      f"--picture={picture}"])
  rows = capsys.readouterr().out
  assert picture.read_bytes().startswith(_PNG)
  piece = pretrained.vocabulary().piece(10)
  assert f"| {piece} 1, " in rows and f"| {piece} 0, " in rows
  assert "mean cosine with the nearest piece 1\n" in rows
  inspect.main([f"--prompt={prompts[0]}"])  # without a base, no pieces
  assert "by cosine" not in capsys.readouterr().out


def test_vocabularies(tmp_path):
  spiece = pretrained.vocabulary_path()
  vocabulary = inspect.open_vocabulary(spiece, None)
  assert vocabulary.same_as(pretrained.vocabulary())
  assert inspect.open_vocabulary(None, pretrained.path()).piece(
      4095) == "▁<extra_id_0>"
  assert inspect.open_vocabulary(None, str(tmp_path)) is None
  bytes_of_byt5 = vocabularies.ByteVocabulary(125)
  assert [bytes_of_byt5.piece(i) for i in (2, 3 + 65, 259)] == [
      None, "<0x41>", None]


def test_the_tokenizer_of_a_gguf_file(smollm2):
  vocabulary = inspect.open_vocabulary(None, str(smollm2))
  assert vocabulary.piece(vocabulary.encode(" positive")[0]) == "Ġpositive"
  assert vocabulary.piece(vocabulary.vocab_size) is None


def test_rows_without_a_piece(table):
  found = inspect.inspect(table[:1], np.concatenate([table, 2 * table[:1]]), 2)
  words = inspect.pieces(found, pretrained.vocabulary())
  assert words[len(table)] == f"#{len(table)}"
  assert inspect.pieces(found, None)[0] == "#0"


# Mean norms of rows as measured on the files that were released.
@pytest.mark.parametrize("name, norm", [
    ("sst2", 1384.8), ("mrpc", 867.7), ("rte", 903.3)])
def test_released_prompts(shared_data, name, norm):
  path = shared_data / f"released_prompts/t5_1_1_lm100k_base/{name}.npy"
  prompt = convert.read(str(path))
  np.testing.assert_array_equal(prompt, np.load(path))
  assert prompt.shape == (100, 768)
  found = inspect.inspect(prompt)
  assert round(found.norms.mean(), 1) == norm
  assert "100 positions in" in inspect.report(found, {})


def test_bad_input(tmp_path, prompts, capsys):
  narrow = str(tmp_path / "narrow.npy")
  npy.write(narrow, np.ones((2, 5)))
  for arguments, words in (
      ((f"--prompt={tmp_path / 'none'}",), "There is no"),
      ((f"--prompt={narrow}", "--base=default"), "has width 5, and"),
      ((f"--prompt={narrow}", "--neighbours=0"), "must be 1 or more"),
      ((f"--prompt={narrow}", "--threshold=2"), "from -1 to 1"),
      ((f"--prompt={prompts[0]}", "--base=default",
        f"--vocabulary={narrow}"), "not a whole SentencePiece model"),
      ((f"--prompt={narrow}", f"--picture={tmp_path / 'no/p.png'}"),
       "cannot write")):
    with pytest.raises(SystemExit) as leaving:
      inspect.main(list(arguments))
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_table_of_another_width():
  with pytest.raises(errors.UserError, match="give the base model"):
    inspect.inspect(np.ones((2, 3)), np.ones((4, 5)))
