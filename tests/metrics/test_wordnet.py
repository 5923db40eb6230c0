"""Synonyms of a small database, against nltk's reader of the same files."""

import pytest

from prompt_tuning import errors
from prompt_tuning.metrics import wordnet

WORDS = ("pub pubs Tavern child children boxes wives serving serves offered "
         "tries tried cheaper inexpensive biggest larger nearby nothing "
         "public_house").split()


def names(reader, word):
  return [[lemma.name() for lemma in found.lemmas()]
          for found in reader.synsets(word)]


def test_by_hand(small_wordnet):
  database = wordnet.WordNet(small_wordnet)
  assert names(database, "pubs") == [
      ["pub", "tavern", "public_house"], ["pub"]]
  assert names(database, "children") == [["child", "kid"]]
  assert names(database, "cheaper") == [["cheap", "inexpensive"]]
  assert names(database, "nothing") == []


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_nltk(small_wordnet, monkeypatch):
  from nltk.corpus.reader import wordnet as nltk_wordnet
  import nltk.data

  monkeypatch.setattr(nltk.data, "path", [str(small_wordnet.parent.parent)])
  expected = nltk_wordnet.WordNetCorpusReader(str(small_wordnet), None)
  database = wordnet.WordNet(str(small_wordnet))
  for word in WORDS:
    assert names(database, word) == names(expected, word), word


def test_no_database(tmp_path, small_wordnet):
  with pytest.raises(errors.UserError, match="nowhere is no WordNet database"):
    wordnet.WordNet(tmp_path / "nowhere")
  path = small_wordnet / "index.adj"
  index = path.read_text()
  path.write_text(index.replace("cheap a 1", "cheap a one"))
  with pytest.raises(errors.UserError, match="index.adj line 3 is not of"):
    wordnet.WordNet(small_wordnet)
  path.write_text(index.replace(" 00000", " 00001"))
  database = wordnet.WordNet(small_wordnet)
  with pytest.raises(errors.UserError, match="no set of synonyms at byte"):
    database.synsets("cheap")
