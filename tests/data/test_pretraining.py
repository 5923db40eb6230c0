"""Span corruption and prefixes: nothing is lost, shares are as published."""

import numpy as np
import pytest

from prompt_tuning.data import pretraining

VOCAB = 4096


def _restore(inputs, targets):
  """Puts the hidden spans back; the slow inverse, as oracle."""
  spans, current = {}, None
  for token in targets:
    if token >= VOCAB - 100:
      current = spans.setdefault(token, [])
    else:
      current.append(token)
  return [t for token in inputs
          for t in (spans[token] if token in spans else [token])]


@pytest.mark.parametrize("length", [4, 8, 37, 96])
def test_span_corruption_can_be_undone(length):
  rng = np.random.default_rng(length)
  ids = np.arange(3, 3 + length)
  for _ in range(50):
    inputs, targets = pretraining.span_corrupted(ids, rng, VOCAB)
    assert _restore(inputs, targets) == ids.tolist()
    sentinels = [t for t in inputs if t >= VOCAB - 100]
    assert sentinels == [VOCAB - 1 - i for i in range(len(sentinels))]


def test_noise_share_and_span_length():
  # Raffel et al. 2020, 3.3.4: 15 % of the tokens, spans of 3 on average.
  rng = np.random.default_rng(0)
  for _ in range(50):
    inputs, targets = pretraining.span_corrupted(np.arange(100), rng, VOCAB)
    spans = sum(t >= VOCAB - 100 for t in inputs)
    assert spans == 5 and len(targets) - spans == 15


def test_spans_move():
  rng = np.random.default_rng(0)
  starts = {
      pretraining.span_corrupted(np.arange(100), rng, VOCAB)[0].index(VOCAB - 1)
      for _ in range(200)}
  assert len(starts) > 20


def test_passages_cover_the_text():
  rng = np.random.default_rng(0)
  body = np.arange(500)
  got = np.concatenate(list(pretraining._passages(body, rng)))
  assert len(got) >= 492 and (got == body[:len(got)]).all()
