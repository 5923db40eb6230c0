"""Two files a split: pairs, lengths, and what does not line up.

Oracles: the rule of the authors' datasets, written out, and their calls of
transformers; ids of bytes.
"""

import json

import pytest

from prompt_tuning import errors
from prompt_tuning.data import (
  features,
  source_target,
  tasks,
  tokenizers,
  vocabularies,
)

BYTES = vocabularies.ByteVocabulary()


@pytest.fixture
def folder(tmp_path):
  """Writes a split, and gives the folder."""
  def write(source, target, stem="train"):
    (tmp_path / f"{stem}.source").write_text(source, encoding="utf-8")
    (tmp_path / f"{stem}.target").write_text(target, encoding="utf-8")
    return tmp_path

  return write


def examples(folder, split="train", **settings):
  return list(source_target.source_target(
      folder=folder, **settings).examples(split))


def test_lines_belong_together(folder):
  path = folder(" one  a\u2028b \r\ntwo", "1\n2\n", "val")
  assert examples(path, "validation") == [
      {"inputs": " one  a\u2028b ", "targets": "1"},
      {"inputs": "two", "targets": "2"}]


def ids(task, lengths, encoding, vocabulary=BYTES):
  found = features.tokenize(
      task, "train", vocabulary, vocabulary, lengths, encoding=encoding)
  return [(found.ids("inputs", i).tolist(), found.ids("targets", i).tolist())
          for i in range(len(found))], found.truncated


def test_a_long_source_loses_its_end_in_front_of_the_separator(folder):
  """As the authors' for GPT-2: 4 tokens of source, a separator, 2 and the end.

  Bytes are 3 more than they are; 1 ends a sequence.
  """
  path = folder("abcdef\nxy\n", "pqr\nz\n")
  task = source_target.source_target(folder=path, separator="|")
  found, cut = ids(task, {"inputs": 5, "targets": 3}, features.DecoderOnly())
  a, bar = ord("a") + 3, ord("|") + 3
  assert found == [
      ([a, a + 1, a + 2, a + 3, bar], [ord("p") + 3, ord("q") + 3, 1]),
      ([ord("x") + 3, ord("y") + 3, bar], [ord("z") + 3, 1])]
  assert (cut["inputs"].examples, cut["inputs"].tokens) == (1, 2)


def test_an_encoder_decoder_reads_the_start_of_a_source(folder):
  task = source_target.source_target(folder=folder("abcdef\n", "pqr\n"))
  found, _ = ids(task, {"inputs": 5, "targets": 3}, features.EncoderDecoder())
  a = ord("a") + 3
  assert found == [
      ([a, a + 1, a + 2, a + 3, 1], [ord("p") + 3, ord("q") + 3, 1])]


TEXTS = ["short one", "a source of rather many words that is too long . "]
SPECIAL = {"gpt2": ["<|endoftext|>"], "bart": ["<s>", "<pad>", "</s>"]}


def tokenizer_of(kind, folder):
  """A folder with byte-level BPE as GPT-2's, or in BART's frame."""
  import tokenizers as library

  made = library.Tokenizer(library.models.BPE())
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = library.decoders.ByteLevel()
  made.train_from_iterator(TEXTS * 9, library.trainers.BpeTrainer(
      vocab_size=290, special_tokens=SPECIAL[kind], show_progress=False,
      initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet()))
  if kind == "bart":
    made.post_processor = library.processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False)
  made.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
      json.dumps({"eos_token": SPECIAL[kind][-1]}))
  return tokenizers.from_path(str(folder))


@pytest.mark.parity
@pytest.mark.parametrize("kind", SPECIAL)
def test_ids_are_those_of_the_authors_datasets(folder, tmp_path, kind):
  """Their calls of transformers, at lengths of 9 and 5."""
  transformers = pytest.importorskip("transformers")
  path = folder("".join(f"{text}\n" for text in TEXTS),
                "".join(f"{text}\n" for text in reversed(TEXTS)))
  vocabulary = tokenizer_of(kind, tmp_path)
  theirs = transformers.PreTrainedTokenizerFast(
      tokenizer_file=str(tmp_path / "tokenizer.json"),
      eos_token=SPECIAL[kind][-1])

  def cut(text, length):
    return theirs(text, truncation=True, max_length=length)["input_ids"]

  if kind == "gpt2":
    end = theirs.convert_tokens_to_ids(SPECIAL[kind][0])
    expected = [([*cut(source, 9), end], [*cut(target, 5), end])
                for source, target in zip(TEXTS, TEXTS[::-1])]
    encoding, lengths, separator = (
        features.DecoderOnly(), {"inputs": 10, "targets": 6}, SPECIAL[kind][0])
  else:
    expected = [(cut(source, 9), cut(target, 5))
                for source, target in zip(TEXTS, TEXTS[::-1])]
    encoding, lengths, separator = (
        features.FramedEncoderDecoder(1, 2), {"inputs": 9, "targets": 5}, None)
  task = source_target.source_target(folder=path, separator=separator)
  assert ids(task, lengths, encoding, vocabulary)[0] == expected
  assert len(expected[1][0]) == lengths["inputs"]


@pytest.mark.parametrize("lengths, encoding, sentence", [
    ({"inputs": 1, "targets": 3}, features.DecoderOnly(),
     r"TASK_FEATURE_LENGTHS\['inputs'\] is 1, .* has 1 tokens"),
    ({"inputs": 5, "targets": 3}, features.EncoderDecoder(),
     "for decoder-only models alone")])
def test_a_separator_that_does_not_fit(folder, lengths, encoding, sentence):
  task = source_target.source_target(
      folder=folder("a\n", "b\n"), separator="|")
  with pytest.raises(errors.UserError, match=sentence):
    ids(task, lengths, encoding)


@pytest.mark.parametrize("source, target, sentence", [
    ("a\nb\nc\n", "d\n",
     r"train\.source has 3 lines and .*train\.target 1: line by line"),
    ("a\n", "d\ne\n", r"train\.source has 1 lines and .*train\.target 2:"),
    ("a\n \nc\n", "d\ne\nf\n", r"train\.source line 2 is empty"),
    ("a\nb\n", "d\n\n", r"train\.target line 2 is empty"),
    ("", "d\n", r"train\.source is empty")])
def test_what_does_not_line_up(folder, source, target, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    examples(folder(source, target))


@pytest.mark.parametrize("given, sentence", [
    (None, "test.source of the task source_target is not given: "),
    ("empty", r"test\.source of the task source_target is not in .*empty: ")])
def test_what_is_not_there(tmp_path, given, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    examples(given and tmp_path / given, "test")


def test_changed_files_are_tokenised_again(folder):
  task = source_target.source_target(folder=folder("a\n", "b\n"))
  first = task.fingerprint("train")
  assert first == task.fingerprint("train")
  folder("a\n", "c\n")
  assert first != task.fingerprint("train")


def test_stemmed_rouge_judges_and_files_are_for_score_text(folder):
  task = source_target.source_target(folder=folder("a\nb\n", "cats sat\nx\n"))
  rows = list(task.examples("train"))
  targets = [row["targets"] for row in rows]
  found = tasks.evaluate(task, rows, targets, ["cat sat", "y"])
  assert {name: value for name, value in found.items()} == {
      "rouge1_stemmed": 50.0, "rouge2_stemmed": 50.0, "rougeL_stemmed": 50.0}
  assert task.prediction_files(rows, [["cat\nsat ", "z"], [""]]) == {
      "predictions.txt": "cat sat\n\n", "targets.txt": "cats sat\nx\n"}
