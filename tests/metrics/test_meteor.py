"""METEOR by hand, and nltk's own call with a small WordNet."""

import pytest

from prompt_tuning import errors
from prompt_tuning.metrics import meteor, penn_tokens, wordnet


@pytest.fixture(autouse=True)
def no_data_of_nltk(monkeypatch):
  """Whatever this machine has."""
  monkeypatch.setattr(meteor, "_found_wordnet", lambda: None)


def by_hand(matches, output, reference, chunks):
  p, r = matches / output, matches / reference
  return 100 * (10 * p * r / (r + 9 * p)) * (
      1 - 0.5 * (chunks / matches) ** 3)


def test_words_and_stems_by_hand():
  # "serving" and "serves" have one stem; of two orders, two chunks: The Mill
  # and serves cheap food. Signs are no words.
  found = meteor.meteor(
      ["Serving cheap food, The Mill."], ["The Mill serves cheap food"])
  assert found == {"meteor_exact_stem": pytest.approx(by_hand(5, 5, 5, 2))}
  found = meteor.meteor(["a b c d", "x"], ["a c e", "y"])
  assert found == {"meteor_exact_stem": pytest.approx(by_hand(2, 3, 4, 2) / 2)}


def test_synonyms_by_hand(small_wordnet):
  targets, outputs = [["no", "a kid near a tavern"]], ["a child near a pub"]
  assert meteor.meteor(targets, outputs) == {
      "meteor_exact_stem": pytest.approx(by_hand(3, 5, 5, 2))}
  assert meteor.meteor(targets, outputs, wordnet_folder=small_wordnet) == {
      "meteor_wordnet": pytest.approx(by_hand(5, 5, 5, 1))}


def test_nltk_itself(small_wordnet, scored):
  """Its call for each text, with its own stemmer."""
  from nltk.translate import meteor_score

  database = wordnet.WordNet(small_wordnet)
  expected = [
      meteor_score.meteor_score(
          [penn_tokens.tokens(text) for text in texts],
          penn_tokens.tokens(output), wordnet=database)
      for output, texts in zip(scored["outputs"], scored["references"])]
  found = meteor.meteor(
      scored["references"], scored["outputs"], str(small_wordnet))
  assert found == {
      "meteor_wordnet": pytest.approx(100 * sum(expected) / len(expected))}


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_nltks_data_are_found(small_wordnet, monkeypatch):
  import nltk.corpus
  from nltk.corpus.reader import wordnet as nltk_wordnet
  import nltk.data

  monkeypatch.undo()  # looks again
  monkeypatch.setattr(nltk.corpus, "wordnet", nltk.corpus.LazyCorpusLoader(
      "wordnet", nltk_wordnet.WordNetCorpusReader, None))
  arguments = ["a tavern"], ["a pub"]
  monkeypatch.setattr(nltk.data, "path", [])
  assert set(meteor.meteor(*arguments)) == {"meteor_exact_stem"}
  monkeypatch.setattr(nltk.data, "path", [str(small_wordnet.parent.parent)])
  assert meteor.meteor(*arguments) == {
      "meteor_wordnet": pytest.approx(by_hand(2, 2, 2, 1))}


def test_nothing_and_mistakes(tmp_path):
  assert meteor.meteor([], []) == {"meteor_exact_stem": 0.0}
  assert meteor.meteor(["a", "b"], ["", "c"]) == {"meteor_exact_stem": 0.0}
  with pytest.raises(errors.UserError, match="is no WordNet database"):
    meteor.meteor(["a"], ["a"], wordnet_folder=tmp_path)
