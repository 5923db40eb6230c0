"""Tables and texts of the assignment: ids, lines and mistakes.

Oracles: the assignment's preprocessing, written out over transformers'
tokenizer; its post-processing; its own files.
"""

import gzip

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.data import (
  features,
  scored_texts,
  table_to_text,
  tokenizers,
)
from prompt_tuning.metrics import sentence_bleu

TABLES = ["name : The Vaults | area : riverside", "name : Café É | food : Fast"]
TEXTS = ["The Vaults is by the river .", "Café É is fast ."]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  """A folder with GPT-2's kind of tokenizer: bytes, one token at both ends."""
  import tokenizers as library

  folder = tmp_path_factory.mktemp("tokenizer")
  made = library.Tokenizer(library.models.BPE())
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = library.decoders.ByteLevel()
  made.train_from_iterator([*TABLES, *TEXTS] * 3, library.trainers.BpeTrainer(
      vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False,
      initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet()))
  made.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
      '{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", '
      '"tokenizer_class": "PreTrainedTokenizerFast"}')
  return folder


@pytest.fixture
def write(tmp_path):
  def file(name, *lines):
    path = tmp_path / name
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(
        gzip.compress(content) if name.endswith(".gz") else content)
    return path

  return file


def ids_of(task, split, folder, targets=40):
  vocabulary = tokenizers.from_path(str(folder))
  return vocabulary, features.tokenize(
      task, split, vocabulary, vocabulary, {"inputs": 100, "targets": targets},
      encoding=features.DecoderOnly())


@pytest.mark.parity
def test_ids_are_those_of_the_assignment(tokenizer, write):
  transformers = pytest.importorskip("transformers")
  theirs = transformers.AutoTokenizer.from_pretrained(tokenizer)
  train = write("train.txt.gz", *(
      f"{table}||{text} " for table, text in zip(TABLES, TEXTS)))
  _, examples = ids_of(table_to_text.pairs(train), "train", tokenizer)
  bos = eos = "<|endoftext|>"
  for i, (table, text) in enumerate(zip(TABLES, TEXTS)):
    inputs = theirs(f"{table_to_text.INSTRUCTION}{table} {bos} ")["input_ids"]
    labels = theirs(f"{text} {eos}")["input_ids"] + [theirs.eos_token_id]
    np.testing.assert_array_equal(examples.ids("inputs", i), inputs)
    np.testing.assert_array_equal(examples.ids("targets", i), labels)


def test_what_a_table_is_decoded_from_is_what_it_was_trained_with(
    tokenizer, write):
  pairs = table_to_text.pairs(write(
      "train.txt", *(f"{one}||text" for one in TABLES)))
  [(task, _)] = table_to_text.tables([write("small.txt", *TABLES, "")]).tasks
  assert task.name == "small"
  vocabulary, trained = ids_of(pairs, "train", tokenizer)
  _, decoded = ids_of(task, "test", tokenizer)
  assert len(decoded) == 2
  for i in range(2):
    np.testing.assert_array_equal(
        decoded.ids("inputs", i), trained.ids("inputs", i))
  assert trained.ids("targets", 0)[-2:].tolist() == [vocabulary.eos_id] * 2


def test_a_vocabulary_without_a_beginning_has_its_end_in_the_place():
  class Vocabulary:
    bos_id, eos_id = None, 1

    def encode(self, text):
      return [len(text)]

  [found] = table_to_text.framed(
      {"inputs": [5, 6], "targets": [7]},
      {"inputs": Vocabulary(), "targets": Vocabulary()}, {})
  assert found == {"inputs": [5, 6, 1, 1], "targets": [7, 1, 1]}


def test_lines_of_texts():
  prompt = f"{table_to_text.INSTRUCTION}{TABLES[0]}"
  text = f" It is\nby {prompt}the river . "
  # The assignment's words, on what its model gives: prompt and text.
  theirs = f"{prompt}  {text}".lstrip().replace(prompt, "").replace("\n", " ")
  found = table_to_text.output(
      [{"number": 4, "prompt": prompt}, {"number": 7, "prompt": prompt}],
      [[text, "another"], [""]])
  assert found == f"4||{theirs.strip()}\n7||\n"


@pytest.mark.parametrize("line, message", [
    ("name : A", "line 2 has no '||'"),
    ("||A text.", "line 2 has no table in front"),
    ("name : A|| ", "line 2 has no text behind")])
def test_a_bad_pair_is_one_sentence(write, line, message):
  task = table_to_text.pairs(write("train.txt", "name : B||B it is.", line))
  with pytest.raises(errors.UserError, match=message):
    list(task.examples("train"))


def test_bad_tables_are_one_sentence(write):
  def read(*lines):
    [(task, _)] = table_to_text.tables([write("t.txt", *lines)]).tasks
    return list(task.examples("test"))

  # Blank lines are left out before texts are numbered, as there.
  assert [(one["number"], one["table"]) for one in read(
      "a : b", "", "c : d", "")] == [(0, "a : b"), (1, "c : d")]
  with pytest.raises(errors.UserError, match=r"line 2 has '\|\|'"):
    read("a : b", "0||a : b||A text.")
  with pytest.raises(errors.UserError, match="both go into dev.out"):
    table_to_text.tables(["a/dev.txt", "b/dev.txt"])
  with pytest.raises(errors.UserError, match="is empty"):
    table_to_text.tables([])


def test_the_assignments_files(shared_data, tmp_path):
  """As many lines as there are, and 100 for a text that is a reference."""
  folder = shared_data / "e2e"
  found = {task.name: list(task.examples("test")) for task, _ in
           table_to_text.tables([
               folder / "table_to_text_input" / f"{name}.txt"
               for name in ("small", "dev", "test")]).tasks}
  assert {name: len(rows) for name, rows in found.items()} == {
      "small": 10, "dev": 547, "test": 630}
  task = table_to_text.pairs(folder / "train.txt.gz")
  assert sum(1 for _ in task.examples("train")) == 42_061
  for name, misplaced in (("small", 0), ("dev", 183)):
    tables = folder / "table_to_text_input" / f"{name}.txt"
    reference = folder / "table_to_text_reference" / f"{name}.out"
    by_table, by_number = {}, {}
    for line in reference.read_text().splitlines():
      number, table, text = line.split("||")
      by_table.setdefault(table, text)
      by_number.setdefault(int(number), table)
    assert sum(row["table"] != by_number[row["number"]]
               for row in found[name]) == misplaced
    outputs = tmp_path / f"{name}.out"
    outputs.write_text(table_to_text.output(
        found[name], [[by_table[row["table"]]] for row in found[name]]))
    scores = {}
    for kind in (None, tables):
      read = scored_texts.read("ids", outputs, [reference], kind)
      scores[kind] = sentence_bleu.sentence_bleu(
          read.references, read.outputs)["sentence_bleu"]
    assert scores[tables] == pytest.approx(100)
    assert (scores[None] < 85) == (misplaced > 0)
    outputs.write_text("0||only one\n")
    with pytest.raises(errors.UserError, match=(
        f"1 outputs and .* references for {len(found[name])}")):
      scored_texts.read("ids", outputs, [reference])
