"""Synonyms of a WordNet database directory (Princeton's `dict`).

The directory has index.POS, data.POS and POS.exc for noun, verb, adj and adv,
as WordNet's own archive, Debian's wordnet-base (/usr/share/wordnet) and nltk's
corpora/wordnet do; the layout is described in WordNet's manual, wndb(5WN).
"""

from collections.abc import Iterator
import dataclasses
import functools
import os
import pathlib

from prompt_tuning import errors

# Endings and what stands for them in base forms, of WordNet's morphy(7WN).
_ENDINGS = {
    "noun": (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"),
             ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"),
             ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}


@dataclasses.dataclass(frozen=True)
class Lemma:
  """A word of a set of synonyms, in nltk's shape."""

  text: str

  def name(self) -> str:
    return self.text


@dataclasses.dataclass(frozen=True)
class Synset:
  """A set of synonyms, in nltk's shape."""

  words: tuple[str, ...]

  def lemmas(self) -> list[Lemma]:
    return [Lemma(word) for word in self.words]


class WordNet:
  """Sets of synonyms by word; what nltk's METEOR asks of its own reader."""

  def __init__(self, folder: str | os.PathLike):
    """Reads the index.

    Raises:
      UserError: the folder is no WordNet database.
    """
    folder = pathlib.Path(folder).expanduser()
    self._data, self._places, self._irregular = {}, {}, {}
    for kind in _ENDINGS:
      self._data[kind] = _read(folder / f"data.{kind}")
      self._places[kind] = dict(_index(folder / f"index.{kind}"))
      self._irregular[kind] = dict(_exceptions(folder / f"{kind}.exc"))
    self.synsets = functools.cache(self._synsets)

  def _synsets(self, word: str) -> list[Synset]:
    """The sets with a word or its base form, of all parts of speech."""
    return [self._at(kind, place) for kind in _ENDINGS
            for form in self._base_forms(word.lower(), kind)
            for place in self._places[kind][form]]

  def _base_forms(self, word: str, kind: str) -> list[str]:
    forms = self._irregular[kind].get(word) or [
        word.removesuffix(ending) + other for ending, other in _ENDINGS[kind]
        if word.endswith(ending)]
    return [form for form in dict.fromkeys([word, *forms])
            if form in self._places[kind]]

  def _at(self, kind: str, place: int) -> Synset:
    data = self._data[kind]
    fields = data[place:data.find(b"|", place)].split()
    try:
      if int(fields[0]) != place:
        raise ValueError("no set of synonyms")
      count = int(fields[3], 16)
      # A marker of where an adjective stands may follow: "outback(a)".
      return Synset(tuple(
          fields[4 + 2 * i].decode().partition("(")[0] for i in range(count)))
    except (IndexError, ValueError) as error:
      raise errors.UserError(
          f"WordNet's data.{kind} has no set of synonyms at byte {place}, "
          f"where index.{kind} has one: take both from one version"
      ) from error


def _read(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise errors.UserError(
        f"{path.parent} is no WordNet database: cannot read {path.name} "
        f"({error.strerror}); give the folder with index.noun, data.noun and "
        "noun.exc, such as /usr/share/wordnet of Debian's wordnet-base"
    ) from error


def _index(path: pathlib.Path) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Words with the places of their sets, the last fields of their lines."""
  for number, line in enumerate(_read(path).splitlines(), start=1):
    if line.startswith(b" "):  # the licence
      continue
    fields = line.split()
    try:
      count = int(fields[2])
      yield fields[0].decode(), tuple(map(int, fields[len(fields) - count:]))
    except (IndexError, ValueError) as error:
      raise errors.UserError(
          f"{path} line {number} is not of WordNet's index: {line[:60]!r}"
      ) from error


def _exceptions(path: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
  for line in _read(path).decode("utf-8", "replace").splitlines():
    word, *forms = line.split() or [""]
    yield word, forms
