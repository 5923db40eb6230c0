"""Features of a masked language model: one mask, never cut away.

Oracles: hand-made cases, and the transformers tokenizer of the same files.
"""

import json
import types

import numpy as np
import pytest

from prompt_tuning.data import features, tasks, tokenizers
from prompt_tuning.errors import UserError

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghij"]
MASK = 4


@pytest.fixture
def vocabulary(tmp_path):
  import tokenizers as package
  from tokenizers import processors

  found = package.Tokenizer(package.models.WordLevel(
      {word: i for i, word in enumerate(WORDS)}, "<unk>"))
  found.pre_tokenizer = package.pre_tokenizers.WhitespaceSplit()
  found.add_special_tokens(WORDS[:5])
  found.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
  found.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({
      "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}))
  return tokenizers.TokenizerJson(tmp_path)


def tokenised(vocabulary, length, *rows):
  task = tasks.Task(
      "mine", lambda split: iter(
          [{"inputs": text, "targets": target} for text, target in rows]),
      ("train",), fingerprint="rows")
  return features.tokenize(
      task, "train", vocabulary, vocabulary, {"inputs": length, "targets": 1},
      None, features.MaskedLM(vocabulary.mask_id))


@pytest.mark.parametrize("text, length, kept", [
    ("a b <mask> c", 8, "a b <mask> c"),
    ("a b <mask> c", 6, "a b <mask> c"),
    ("a b <mask> c", 5, "b <mask> c"),  # the longer side first
    ("a b <mask> c", 4, "b <mask>"),  # then both, the right one first
    ("a b <mask> c", 3, "<mask>"),
    ("a b c d e <mask> f", 6, "d e <mask> f"),
    ("<mask> a b c d e", 5, "<mask> a b"),
    ("a <mask> b c d e f", 6, "a <mask> b c"),
    ("a b c <mask> d e f", 6, "b c <mask> d")])
def test_what_is_farthest_from_the_mask_is_cut(
    vocabulary, text, length, kept):
  examples = tokenised(vocabulary, length, (text, "j"))
  ids = examples.ids("inputs", 0).tolist()
  assert ids == [0, *vocabulary.encode(kept), 2]
  assert examples.truncated["inputs"].tokens == len(text.split()) + 2 - len(ids)
  assert examples.ids("targets", 0).tolist() == [14]


def test_padded(vocabulary):
  encoding = features.MaskedLM(MASK)
  found = encoding.padded(
      [[0, 5, MASK, 6, 2], [0, MASK, 2]], [[9], []], 6, 1)
  assert {name: array.tolist() for name, array in found.items()} == {
      "encoder_input_tokens": [[0, 5, 4, 6, 2, 0], [0, 4, 2, 0, 0, 0]],
      "encoder_input_mask": [[1] * 5 + [0], [1] * 3 + [0] * 3],
      "encoder_mask_positions": [[2], [1]],
      "decoder_target_tokens": [[9], [0]],
      "decoder_loss_weights": [[1], [0]]}
  assert tuple(found) == encoding.names
  assert {array.dtype for array in found.values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize("text, target, sentence", [
    ("a b", "c", "'a b' have 0 masks.*put <mask> in the task's INPUTS"),
    ("a <mask> <mask>", "c", "have 2 masks"),
    ("a <mask>", "c d", "'c d' has 2 tokens.*predicts one")])
def test_mistakes(vocabulary, text, target, sentence):
  with pytest.raises(UserError, match=sentence):
    tokenised(vocabulary, 8, (text, target))
  with pytest.raises(UserError, match="is 2, which leaves no room"):
    tokenised(vocabulary, 2, ("a <mask>", "b"))


def test_a_vocabulary_without_a_mask(vocabulary, tmp_path):
  (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
  with pytest.raises(UserError, match="is no masked language model"):
    _ = tokenizers.TokenizerJson(tmp_path).mask_id


@pytest.fixture(params=["roberta", "bart"])
def roberta_files(tmp_path, request):
  """vocab.json and merges.txt as RoBERTa, CodeBERT and BART were published."""
  merges = ["Ġ g", "r e", "re a", "rea t", "Ġg reat", "Ġ I", "ĠI t", "Ġ w"]
  pieces = ["<s>", "<pad>", "</s>", "<unk>", *map(chr, range(33, 127)), "Ġ",
            "Ċ", "Ã", "©", *(merge.replace(" ", "") for merge in merges),
            "<mask>"]
  (tmp_path / "vocab.json").write_text(json.dumps(
      {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}))
  (tmp_path / "merges.txt").write_text(
      "#version: 0.2\n" + "\n".join(merges) + "\n")
  (tmp_path / "config.json").write_text(json.dumps(
      {"model_type": request.param, "pad_token_id": 1}))
  (tmp_path / "special_tokens_map.json").write_text(json.dumps({
      "eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>",
      "unk_token": "<unk>", "mask_token": {
          "content": "<mask>", "single_word": False, "lstrip": True,
          "rstrip": False, "normalized": True}}))
  return tmp_path


TEXTS = ["So great . It was <mask> .", "<mask> : where is it ?", "é\n  a", "",
         "a<mask> b", "great"]


def test_byte_pairs_without_tokenizer_json(roberta_files):
  found = tokenizers.TokenizerJson(roberta_files)
  assert found.frame == ([0], [2])
  assert (found.bos_id, found.eos_id, found.pad_id) == (0, 2, 1)
  assert found.decode(found.encode(TEXTS[2])) == TEXTS[2]
  pieces = [found.piece(i) for i in found.encode(TEXTS[0])]
  # The mask takes the space before it along.
  assert pieces == ["S", "o", "Ġgreat", "Ġ", ".", "ĠIt", "Ġw", "a", "s",
                    "<mask>", "Ġ", "."]


@pytest.mark.parity
def test_byte_pairs_are_those_of_transformers(roberta_files):
  transformers = pytest.importorskip("transformers")
  theirs = transformers.AutoTokenizer.from_pretrained(roberta_files)
  found = tokenizers.TokenizerJson(roberta_files)
  before, behind = found.frame
  for text in TEXTS:
    assert [*before, *found.encode(text), *behind] == theirs(text)["input_ids"]


def test_other_kinds_of_models_are_as_they_were():
  """Targets of the others still end in an end-of-sequence."""
  vocabulary = types.SimpleNamespace(encode=lambda text: [7], eos_id=1)
  for encoding in (features.EncoderDecoder(), features.DecoderOnly()):
    assert encoding.target_ids("x", vocabulary) == [7, 1]
