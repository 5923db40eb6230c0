"""Vocabularies: T5's published ids, seqio's own classes, damaged files."""

import copy
import subprocess
import sys

import pytest

from prompt_tuning import errors
from prompt_tuning.data import vocabularies

TEXTS = (
    "", " ", "positive", "not_equivalent", "sentence: it 's a charming film .",
    "<extra_id_0> b <extra_id_99>", "naïve café — 東京 😀", "tab\tand\nline",
)


@pytest.fixture(scope="module")
def t5_file(shared_data):
  return shared_data / "t5x" / "t5_vocab"


@pytest.fixture(scope="module")
def t5(t5_file):
  return vocabularies.SentencePieceVocabulary(t5_file, extra_ids=100)


def test_t5_sizes_and_special_ids(t5, t5_file):
  assert t5.vocab_size == 32_100
  assert (t5.pad_id, t5.eos_id, t5.unk_id) == (0, 1, 2)
  assert vocabularies.SentencePieceVocabulary(t5_file).vocab_size == 32_000


@pytest.mark.parametrize("text, ids", [
    # The ids that T5's label words are known to have.
    ("positive", [1465]), ("negative", [2841]), ("equivalent", [7072]),
    ("not_equivalent", [59, 834, 15, 1169, 15592]), ("True", [10998]),
    ("False", [10747, 7, 15]), ("entailment", [3, 35, 5756, 297]),
    ("contradiction", [27252]), ("neutral", [7163]), ("choice1", [1160, 536]),
    # The first sentinel has the highest id.
    ("<extra_id_0>", [32099]), ("<extra_id_99>", [32000]),
])
def test_t5_label_words(t5, text, ids):
  assert t5.encode(text) == ids
  assert t5.decode(ids) == text


def test_decoding_stops_at_eos_and_survives_unknown_ids(t5):
  assert t5.decode([1465, 1, 2841]) == "positive"
  assert t5.decode([1]) == ""
  unknown = t5.decode([t5.unk_id])
  assert t5.decode([40_000]) == t5.decode([-1]) == unknown


@pytest.mark.parity
def test_ids_and_texts_are_seqios(t5, t5_file):
  seqio = pytest.importorskip("seqio")
  oracle = seqio.SentencePieceVocabulary(str(t5_file), extra_ids=100)
  assert t5.vocab_size == oracle.vocab_size
  for text in TEXTS:
    ids = oracle.encode(text)
    assert t5.encode(text) == ids
    assert t5.decode(ids) == oracle.decode(ids)
  for ids in ([5, 1, 6], [0, 5, 0], [40_000, 7], [32_099, 9], [2, 3, 4]):
    assert t5.decode(ids) == oracle.decode(ids)


@pytest.mark.parity
def test_byte_ids_and_texts_are_seqios():
  seqio = pytest.importorskip("seqio")
  ours, oracle = vocabularies.ByteVocabulary(125), seqio.ByteVocabulary(125)
  assert (ours.vocab_size, ours.eos_id, ours.unk_id) == (
      oracle.vocab_size, oracle.eos_id, oracle.unk_id)
  for text in TEXTS:
    assert ours.encode(text) == oracle.encode(text)
  for ids in ([100, 1, 101], [0, 2, 100, 300], [230, 104], [383, 258]):
    assert ours.decode(ids) == oracle.decode(ids)


@pytest.mark.parity
def test_seqio_vocabularies_become_the_same_ones(t5, t5_file, tmp_path):
  seqio = pytest.importorskip("seqio")
  moved = tmp_path / "another name.model"
  moved.write_bytes(t5_file.read_bytes())
  theirs = seqio.SentencePieceVocabulary(str(moved), extra_ids=100)
  assert vocabularies.from_seqio(theirs).same_as(t5)
  # The same pieces with the extra ids inside the file, as T5X has them.
  moved.write_bytes(theirs.sp_model)
  baked = vocabularies.SentencePieceVocabulary(moved)
  assert baked.same_as(t5)
  assert vocabularies.from_seqio(seqio.ByteVocabulary(3)).same_as(
      vocabularies.ByteVocabulary(3))
  for other in (
      seqio.PassThroughVocabulary(9),
      seqio.SentencePieceVocabulary(
          str(t5_file), 100, reverse_extra_ids=False)):
    with pytest.raises(errors.UserError, match="not supported"):
      vocabularies.from_seqio(other)


def test_sameness_is_content_not_path(t5, t5_file, tmp_path):
  copied = tmp_path / "copy.model"
  copied.write_bytes(t5_file.read_bytes())
  assert t5.same_as(vocabularies.SentencePieceVocabulary(copied, 100))
  assert not t5.same_as(vocabularies.SentencePieceVocabulary(copied, 99))
  changed = t5_file.read_bytes().replace(b"positive", b"positivf", 1)
  assert not t5.same_as(
      vocabularies.SentencePieceVocabulary.from_bytes(changed, 100))
  assert not t5.same_as(vocabularies.ByteVocabulary(100))
  assert not vocabularies.ByteVocabulary(0).same_as(
      vocabularies.ByteVocabulary(1))


def test_bytes():
  vocabulary = vocabularies.ByteVocabulary(extra_ids=125)
  assert vocabulary.vocab_size == 384
  assert vocabulary.encode("aé") == [100, 198, 172]
  assert vocabulary.decode([100, 198, 172, 1, 100]) == "aé"
  assert vocabulary.decode([0, 2, 100, 383, 198]) == "a"


def test_copies_share_what_is_loaded(t5):
  assert copy.deepcopy(t5) is t5


@pytest.mark.parametrize("damage", [
    lambda model: b"",
    lambda model: b"no model " * 100,
    lambda model: b"<!DOCTYPE html><html>Not found</html>",
    lambda model: model[:len(model) // 2],
    lambda model: model[:-1],
    lambda model: b"\x00" * 1000,
])
def test_damaged_model(t5_file, tmp_path, damage):
  path = tmp_path / "bad.model"
  path.write_bytes(damage(t5_file.read_bytes()))
  vocabulary = vocabularies.SentencePieceVocabulary(path, 100)
  with pytest.raises(errors.UserError, match="bad.model"):
    vocabulary.encode("a")


def test_missing_model_is_noticed_at_first_use(tmp_path):
  vocabulary = vocabularies.SentencePieceVocabulary(tmp_path / "none.model")
  with pytest.raises(errors.UserError, match="none.model"):
    vocabulary.encode("a")
  with pytest.raises(errors.UserError, match="sentencepiece_model_file"):
    _ = vocabulary.fingerprint


def test_import_is_light():
  loaded = subprocess.run(
      [sys.executable, "-c",
       "import sys; from prompt_tuning.data import vocabularies, tasks, files"
       ", features, batches; print(*sys.modules)"],
      capture_output=True, text=True, check=True).stdout.split()
  heavy = {"tensorflow", "seqio", "torch", "jax", "grain", "sentencepiece"}
  assert not heavy & set(loaded)
