"""Texts that end a generation, wherever tokens begin and end.

A stop string may be one token, several, or parts of tokens with other text
around it. What matters of the text so far is the longest end of it that
begins a stop string, so a finite automaton over characters (Aho & Corasick
1975) finds every occurrence, and a table of what each token does to its state
lets the compiled loop see them token by token.
"""

from collections.abc import Sequence
import functools

import numpy as np

from prompt_tuning import errors
from prompt_tuning.data import vocabularies


def stop_table(
    stops: Sequence[str], token_texts: Sequence[str]) -> np.ndarray:
  """What each token does to the state of an automaton.

  Args:
    stops: texts, none of them empty.
    token_texts: the text of each id, V of them.

  Returns:
    [S, V] int32, the next state; state 0 is where a text begins, the last one
    is where a stop string has been seen, and is never left.

  Raises:
    UserError: an empty stop string.
  """
  if not all(stops):
    raise errors.UserError(
        f"the stop strings {list(stops)!r} have an empty one, which would end "
        "every text at once: leave it out")
  alphabet = {c: i for i, c in enumerate(sorted({*"".join(stops)}))}
  steps = _character_table(stops, alphabet)  # [S, A + 1]
  other = len(alphabet)
  lengths = np.array([len(text) for text in token_texts])
  order = np.argsort(-lengths, kind="stable")
  letters = np.full((len(token_texts), lengths.max(initial=0)), other)
  for row, text in enumerate(token_texts):
    letters[row, :len(text)] = [alphabet.get(c, other) for c in text]
  states = np.repeat(
      np.arange(len(steps))[:, None], len(token_texts), axis=1)  # [S, V]
  for place in range(letters.shape[1]):
    rows = order[:np.searchsorted(-lengths[order], -place, side="left")]
    states[:, rows] = steps[states[:, rows], letters[rows, place]]
  return states.astype(np.int32)


def _character_table(stops, alphabet) -> np.ndarray:
  """The next state for each character; the last column is any other one."""
  prefixes = sorted(
      {stop[:n] for stop in stops for n in range(len(stop))}, key=len)
  number = {prefix: i for i, prefix in enumerate(prefixes)}
  found = len(prefixes)
  table = np.zeros((found + 1, len(alphabet) + 1), np.int64)
  table[found] = found
  for prefix, state in number.items():
    for character, column in alphabet.items():
      text = prefix + character
      if text.endswith(tuple(stops)):
        table[state, column] = found
        continue
      while text not in number:
        text = text[1:]
      table[state, column] = number[text]
  return table


@functools.lru_cache(maxsize=4)  # a second for 100,000 tokens
def token_texts(vocabulary: vocabularies.Vocabulary) -> tuple[str, ...]:
  """What each id adds to a text; "" for one that decoding leaves out.

  Bytes that are no character by themselves come out as a replacement.
  """
  # Behind another token, for some tokenizers drop the space of the first one.
  front = vocabulary.encode("a")[-1:]
  start = len(vocabulary.decode(front))
  return tuple(
      vocabulary.decode([*front, number])[start:]
      for number in range(vocabulary.vocab_size))


def cut(text: str, stops: Sequence[str]) -> str:
  """The text before the first of the stop strings in it."""
  places = [text.find(stop) for stop in stops]
  return text[:min((p for p in places if p >= 0), default=len(text))]
