"""Texts with scores of the original programs, and a small WordNet."""

import json

import pytest

# Kind: sets of synonyms; forms that are not by rule.
_SETS = {
    "noun": [["pub", "tavern", "public_house"], ["child", "kid"], ["pub"],
             ["box", "carton"], ["wife", "spouse"]],
    "verb": [["serve", "offer"], ["try", "taste"]],
    "adj": [["cheap", "inexpensive(p)"], ["large", "big"]],
    "adv": [["nearby", "near"]],
}
_IRREGULAR = {"noun": [("children", "child")], "verb": [("tried", "try")],
             "adj": [], "adv": []}
_LETTERS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}


def _write_wordnet(folder):
  """The sets as WordNet's files, with nltk's two more, which it only opens."""
  folder.mkdir(parents=True)
  for kind, sets in _SETS.items():
    data, places = "  1 a line of the licence  \n", {}
    for words in sets:
      for word in words:
        places.setdefault(word.partition("(")[0], []).append(len(data))
      data += (f"{len(data):08d} 00 {_LETTERS[kind]} {len(words):02x} "
               + " ".join(f"{word} 0" for word in words)
               + f" 000 {'00 ' if kind == 'verb' else ''}| a meaning  \n")
    (folder / f"data.{kind}").write_text(data)
    (folder / f"index.{kind}").write_text(
        "  1 a line of the licence  \n" + "".join(
            f"{word} {_LETTERS[kind]} {len(at)} 1 @ {len(at)} 0 "
            + " ".join(f"{place:08d}" for place in at) + "  \n"
            for word, at in sorted(places.items())))
    (folder / f"{kind}.exc").write_text("".join(
        f"{form} {base}\n" for form, base in _IRREGULAR[kind]))
  (folder / "lexnames").write_text("00\tany\t1\n")
  for name in ("index.sense", "cntlist.rev"):
    (folder / name).write_text("")
  return folder


@pytest.fixture
def small_wordnet(tmp_path):
  """A folder with a WordNet of a few words, where nltk would look for it."""
  return _write_wordnet(tmp_path / "corpora" / "wordnet")


@pytest.fixture(scope="session")
def scored(expectations):
  """Outputs, references and what the original scorers say of them."""
  content = json.loads(
      (expectations / "text_metrics.json").read_text(encoding="utf-8"))
  outputs, references = zip(*content["examples"])
  return content | {"outputs": outputs, "references": references}
