"""Encodings are made once, kept, and delivered with the rows that they are of.

Oracle: an encoder whose numbers are those of the text itself.
"""

import dataclasses
import json

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.data import batches, encodings, token_ids


class Numbers:
  """Encodes the number in a text."""

  width = 2

  def __init__(self, fingerprint="numbers"):
    self.fingerprint = fingerprint
    self.calls = self.texts = 0

  def encode(self, texts):
    self.calls += 1
    self.texts += len(texts)
    return np.array([[float(text.split()[-1]), 1] for text in texts])


def examples_of(originals, name="task"):
  rows = {key: token_ids.Rows(np.int32) for key in ("inputs", "targets")}
  lines = token_ids.Rows(np.uint8)
  for i, original in enumerate(originals):
    rows["inputs"].append([i + 2] * (1 + i % 3))
    rows["targets"].append([5, 1])
    line = json.dumps(original) + "\n"
    lines.append(np.frombuffer(line.encode(), np.uint8))
  arrays = {}
  for key, values in (*rows.items(), ("originals", lines)):
    arrays[key], arrays[f"{key}_offsets"] = values.flat()
  return token_ids.Examples(
      name, "train", arrays, {}, token_ids.content_fingerprint(arrays))


@pytest.fixture
def examples():
  return examples_of([
      {"inputs": f"number {i}", "targets": "x"} for i in range(7)])


def test_they_are_made_once(examples, tmp_path):
  encoder = Numbers()
  made = encodings.attach(examples, encoder, tmp_path / "new")
  np.testing.assert_array_equal(
      made.encodings, [[i, 1] for i in range(7)])
  again = encodings.attach(examples, encoder, tmp_path / "new")
  np.testing.assert_array_equal(again.encodings, made.encodings)
  assert encoder.calls == 1 and again.encodings.dtype == np.float32
  other = Numbers("others")
  encodings.attach(examples, other, tmp_path / "new")
  assert other.calls == 1


def test_a_text_of_several_examples_is_encoded_once(tmp_path):
  encoder = Numbers()
  numbers = [3, 1, 3, 3, 2, 1]
  made = encodings.attach(
      examples_of([{"inputs": f"number {i}"} for i in numbers]), encoder,
      tmp_path)
  np.testing.assert_array_equal(made.encodings, [[i, 1] for i in numbers])
  assert encoder.texts == 3


@pytest.mark.parametrize("damage", [
    lambda file: file.write_bytes(file.read_bytes()[:-4] + b"abcd"),
    lambda file: file.write_bytes(b""),
    lambda file: file.with_suffix(".sha256").unlink()])
def test_a_damaged_cache_is_made_again(examples, tmp_path, damage):
  encoder = Numbers()
  made = encodings.attach(examples, encoder, tmp_path)
  [file] = tmp_path.glob("*.npy")
  damage(file)
  with pytest.warns(UserWarning, match="made again"):
    again = encodings.attach(examples, encoder, tmp_path)
  np.testing.assert_array_equal(again.encodings, made.encodings)
  assert encoder.calls == 2
  encodings.attach(examples, encoder, tmp_path)
  assert encoder.calls == 2  # and is whole


def test_the_text_that_is_encoded():
  """Its own first, then the inputs' before they were ids, then the inputs."""
  for original, want in [
      ({"inputs": "a", "encoder_text": "b"}, "b"),
      ({"inputs": [3], "inputs_pretokenized": "c"}, "c"),
      ({"inputs": "a"}, "a")]:
    assert encodings.text_of(original, "here") == want
  for original in ({"inputs": [3, 4]}, {"inputs": "a", "encoder_text": [3]}):
    with pytest.raises(errors.UserError, match="example 2 has no text"):
      encodings.text_of(original, "example 2")


def test_what_is_no_encoding(examples, tmp_path):
  encoder = Numbers()
  encoder.width = 3
  with pytest.raises(errors.UserError, match=r"shape \(7, 2\)"):
    encodings.attach(examples, encoder, tmp_path)
  assert not list(tmp_path.glob("*.npy"))


def test_rows_of_a_batch_have_their_own(examples, tmp_path):
  """Input ids are number + 2, in shuffled, bucketed and evaluated batches."""
  made = encodings.attach(examples, Numbers(), tmp_path)
  lengths = {"inputs": 4, "targets": 2}
  stream = batches.TrainBatches(made, 2, 0, lengths, [2])
  found = [next(stream) for _ in range(5)] + [
      one.features for one in batches.eval_batches(made, 3, lengths)]
  for batch in found:
    np.testing.assert_array_equal(
        batch["instance_encodings"][:, 0],
        batch["encoder_input_tokens"][:, 0] - 2)
  parts = [batches.TrainBatches(
      made, 2, 0, lengths, process_index=i, process_count=2)[0]
           for i in range(2)]
  whole = batches.TrainBatches(made, 2, 0, lengths)[0]
  np.testing.assert_array_equal(
      np.concatenate([part["instance_encodings"] for part in parts]),
      whole["instance_encodings"])


def test_ids_for_an_encoder_that_is_trained(examples):
  class Words:
    def tokenize(self, texts):
      ids = np.array([[9, int(text.split()[-1])] for text in texts])
      return ids, np.ones(ids.shape, bool)

  short = encodings.attach_ids(examples, Words())
  chosen = short.select([4, 2])
  np.testing.assert_array_equal(chosen.encoder_ids[0], [[9, 4], [9, 2]])
  longer = examples_of([{"inputs": "number 50"}] * 3, "other")
  longer = dataclasses.replace(
      longer, encoder_ids=(np.full((3, 3), 50), np.ones((3, 3), bool)))
  stream = batches.TrainBatches(
      [(short, 1.0), (longer, 1.0)], 4, 0, {"inputs": 4, "targets": 2})
  batch = next(stream)
  assert batch["instance_tokens"].shape == (4, 3)
  for tokens, mask, inputs in zip(
      batch["instance_tokens"], batch["instance_mask"],
      batch["encoder_input_tokens"]):
    assert (tokens[0] == 50 and mask.all()) or (
        list(tokens) == [9, inputs[0] - 2, 0] and list(mask) == [1, 1, 0])
