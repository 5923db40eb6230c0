"""Tokenizers from tokenizer.json and from GGUF files.

Oracles: transformers' own loading of the same folder or file; SentencePiece
itself for the models that it trained; each model's published rules.
"""

import copy
import json
import random
import re

import gguf
import numpy as np
import pytest
import tokenizers as package

from prompt_tuning import errors
from prompt_tuning.data import gguf_tokenizers, tokenizers, vocabularies

PIECES = (
    "the film", "don't", "it's", "we'll", " 3", "2024", "  12", "1,000.50",
    "\n\n", "\t", "   ", "naïve", "東京", "Ελλάδα", "مرحبا", "हिन्दी", "한국어",
    "😀", "👩‍👩‍👧", "½", "²", "٣٤", "x = [i for i in range(10)]",
    "if (a->b != c) {", "return", "<div>", "</div>", "e\u0301", "\u200b",
    "\u00a0", "...", "!?", "''", "“quoted”", "—", "\r\n",
    "https://a.b/c?d=e", "A", "ZZZ", "_snake_case", "CamelCase", "$5", "#1",
    "@you", "\x00", "\ufffd", "𝔘𝔫𝔦", "Ω", "ﬁ", "İ", "ß", "'S", "\u3000",
    "<|end|>", "<extra>", "▁")


def sentences(pieces=PIECES, count=200):
  """Texts of the pieces, with and without spaces between them."""
  draw = random.Random(0)
  made = ["", " ", "\n", "a", *pieces]
  while len(made) < count:
    made.append(draw.choice(("", " ")).join(
        draw.choices(pieces, k=draw.randint(2, 8))))
  return made


def train(pre_tokenizer, size=600):
  """A byte-level BPE of the sentences, `<|end|>` and `<extra>` added."""
  made = package.Tokenizer(package.models.BPE())
  made.pre_tokenizer = pre_tokenizer
  made.decoder = package.decoders.ByteLevel()
  made.train_from_iterator(sentences(count=400), package.trainers.BpeTrainer(
      vocab_size=size, show_progress=False, min_frequency=1,
      initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet()))
  made.add_tokens([
      package.AddedToken("<|end|>", special=True, normalized=False),
      package.AddedToken("<extra>", special=False, normalized=False)])
  return made


@pytest.fixture(scope="module")
def made():
  return train(package.pre_tokenizers.ByteLevel(add_prefix_space=False))


def save(folder, tokenizer, **files):
  """Writes tokenizer.json; `files` are JSON files beside it."""
  tokenizer.save(str(folder / "tokenizer.json"))
  for name, content in files.items():
    (folder / f"{name}.json").write_text(json.dumps(content))
  return folder


def template(tokenizer, single):
  changed = package.Tokenizer.from_str(tokenizer.to_str())
  changed.post_processor = package.processors.TemplateProcessing(
      single=single, special_tokens=[
          (token, tokenizer.token_to_id(token))
          for token in ("<|end|>", "<extra>")])
  return changed


# -------------------------------------------------------- tokenizer.json


def test_ids_and_texts(tmp_path, made):
  folder = save(tmp_path, made, tokenizer_config={"eos_token": "<|end|>"})
  end, extra = made.token_to_id("<|end|>"), made.token_to_id("<extra>")
  for path in (folder, folder / "tokenizer.json"):
    ours = tokenizers.TokenizerJson(path)
    assert ours.vocab_size == 602 and ours.eos_id == end
    for text in sentences():
      ids = ours.encode(text)
      assert ids == ours.encode_inputs(text) == made.encode(text).ids
      assert ours.decode(ids) == text.partition("<|end|>")[0]
  a, b = ours.encode("a"), ours.encode(" b")
  assert ours.decode(a + [end] + b) == "a"
  assert ours.decode(np.array(a + [99_999, -1] + b)) == "a b"
  assert ours.decode(a + [extra]) == "a<extra>"


@pytest.mark.parity
@pytest.mark.parametrize("single", [
    "$A", "<|end|> $A", "<|end|> <extra> $A <|end|>", "$A <extra>"])
def test_what_a_text_begins_with_is_transformers(tmp_path, made, single):
  transformers = pytest.importorskip("transformers")
  config = {"eos_token": "<|end|>", "pad_token": "<extra>",
            "tokenizer_class": "PreTrainedTokenizerFast"}
  save(tmp_path, template(made, single), tokenizer_config=config)
  oracle = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = tokenizers.TokenizerJson(tmp_path)
  assert (ours.eos_id, ours.pad_id) == (oracle.eos_token_id,
                                        oracle.pad_token_id)
  behind = single.partition("$A")[2].split()
  for text in ("a", "the film", " x", "<|end|> y"):
    want = oracle(text)["input_ids"]
    # Inputs are gone on from: what comes behind is not for them.
    assert ours.encode_inputs(text) == want[:len(want) - len(behind)]
    assert ours.encode(text) == oracle(
        text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("single, asked, add_bos, begins", [
    ("$A", None, None, False), ("<extra> $A", None, None, True),
    ("$A", False, None, False), ("<extra> $A", True, None, True),
    ("$A", True, None, None), ("<extra> $A", False, None, None),
    ("$A", True, True, True), ("<extra> $A", False, False, False),
    ("$A", None, True, True), ("<extra> $A", None, False, False)])
def test_files_that_disagree_are_not_chosen_from(
    tmp_path, made, single, asked, add_bos, begins):
  config = {"bos_token": "<extra>"} | (
      {} if asked is None else {"add_bos_token": asked})
  save(tmp_path, template(made, single), tokenizer_config=config)
  ours = tokenizers.TokenizerJson(tmp_path, add_bos=add_bos)
  if begins is None:
    with pytest.raises(errors.UserError, match="set ADD_BOS"):
      ours.encode_inputs("a")
  else:
    assert ours.encode_inputs("a") == [601] * begins + ours.encode("a")


@pytest.mark.parametrize("files, want", [
    ({"tokenizer_config": {"eos_token": "a", "pad_token": "b"}},
     {"eos": "a", "pad": "b", "bos": None, "unk": None}),
    ({"tokenizer_config": {"eos_token": {"content": "a", "lstrip": False}}},
     {"eos": "a"}),
    ({"tokenizer_config": {"eos_token": None},
      "special_tokens_map": {"eos_token": "b", "unk_token": "c"},
      "config": {"eos_token_id": 5, "bos_token_id": 7}},
     {"eos": "b", "unk": "c", "bos": 7}),
    # As of GPT-2, which has no other file.
    ({"tokenizer_config": {"model_max_length": 1024},
      "config": {"eos_token_id": 5, "bos_token_id": 5}},
     {"eos": 5, "bos": 5}),
])
def test_special_tokens_come_from_the_files(tmp_path, made, files, want):
  ours = tokenizers.TokenizerJson(save(tmp_path, made, **files))
  want = {name: made.token_to_id(v) if isinstance(v, str) else v
          for name, v in want.items()}
  found = {name: getattr(ours, f"{name}_id") for name in want}
  assert found == want
  assert "pad" in want or ours.pad_id == 0


def test_special_tokens_are_not_guessed(tmp_path, made):
  # Several of them may end a text of this model: which one, is not said.
  save(tmp_path, made, config={"eos_token_id": [5, 6]})
  with pytest.raises(errors.UserError, match="option eos_token"):
    _ = tokenizers.TokenizerJson(tmp_path).eos_id
  given = tokenizers.TokenizerJson(
      tmp_path, eos_token="<|end|>", pad_token="a", bos_token="b")
  assert [given.eos_id, given.pad_id, given.bos_id] == [
      made.token_to_id(token) for token in ("<|end|>", "a", "b")]
  wrong = tokenizers.TokenizerJson(tmp_path, eos_token="</s>")
  with pytest.raises(errors.UserError, match="'</s>' is not in the vocabulary"):
    _ = wrong.eos_id
  with pytest.raises(errors.UserError, match="option bos_token"):
    tokenizers.TokenizerJson(tmp_path, add_bos=True).encode_inputs("a")


def test_cutting_and_padding_are_ours(tmp_path, made):
  changed = package.Tokenizer.from_str(made.to_str())
  changed.enable_truncation(2)
  changed.enable_padding(length=9)
  ours = tokenizers.TokenizerJson(save(tmp_path, changed))
  assert ours.encode("the film and more") == made.encode(
      "the film and more").ids


def test_ids_with_gaps_count(tmp_path, made):
  content = json.loads(made.to_str())
  content["added_tokens"][-1]["id"] = 700
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  highest = max(package.Tokenizer.from_file(
      str(tmp_path / "tokenizer.json")).get_vocab().values())
  assert tokenizers.TokenizerJson(tmp_path).vocab_size == highest + 1


def test_fingerprint_is_what_decides_ids(tmp_path, made):
  config = {"tokenizer_config": {"eos_token": "<|end|>"}}

  def fingerprint(name, tokenizer, **options):
    folder = tmp_path / name
    folder.mkdir()
    return tokenizers.TokenizerJson(
        save(folder, tokenizer, **config), **options).fingerprint

  same = package.Tokenizer.from_str(made.to_str())
  same.decoder = package.decoders.Fuse()
  same.enable_truncation(3)
  first = fingerprint("a", made)
  assert fingerprint("b", same) == first
  assert fingerprint("c", made, pad_token="a") == first
  others = {
      fingerprint("d", made, eos_token="a"),
      fingerprint("e", template(made, "<extra> $A")),
      fingerprint("f", train(package.pre_tokenizers.ByteLevel(), 601))}
  assert len(others | {first}) == 4


@pytest.mark.parametrize("content", [
    "", "{", "[]", "{}", '{"model": {"type": "BPE"}}', "\x00" * 99,
    # Makes version 0.23 of the package panic.
    '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": '
    '[["a", "b"]]}, "added_tokens": []}'])
def test_damaged_tokenizer(tmp_path, content):
  (tmp_path / "tokenizer.json").write_text(content)
  with pytest.raises(errors.UserError, match=r"tokenizer\.json is damaged"):
    tokenizers.TokenizerJson(tmp_path).encode("a")


def test_missing_files(tmp_path, made):
  absent = tokenizers.TokenizerJson(tmp_path / "tokenizer.json")
  with pytest.raises(errors.UserError, match="No such file"):
    absent.encode("a")
  with pytest.raises(errors.UserError, match="AutoTokenizer.from_pretrained"):
    tokenizers.TokenizerJson(tmp_path).encode("a")
  (tmp_path / "tokenizer.model").touch()
  with pytest.raises(errors.UserError, match="SentencePieceVocabulary"):
    tokenizers.TokenizerJson(tmp_path).encode("a")
  (tmp_path / "tokenizer_config.json").write_text("[1]")
  save(tmp_path, made)
  with pytest.raises(errors.UserError, match="tokenizer_config.json is not"):
    _ = tokenizers.TokenizerJson(tmp_path).eos_id


def test_copies_share_what_is_loaded(tmp_path, made):
  ours = tokenizers.TokenizerJson(save(tmp_path, made), eos_token="a")
  assert copy.deepcopy(ours) is ours
  assert repr(ours) == f"TokenizerJson({str(tmp_path)!r}, eos_token='a')"


# ------------------------------------------------------------------ GGUF


def write(path, tokens, kinds=None, **values):
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_array("tokenizer.ggml.tokens", tokens)
  if kinds is not None:
    writer.add_array("tokenizer.ggml.token_type", kinds)
  for name, value in values.items():
    add = {bool: writer.add_bool, int: writer.add_uint32,
           str: writer.add_string, list: writer.add_array}[type(value)]
    add(f"tokenizer.ggml.{name}", value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def merges_of(tokenizer):
  """Merges as GGUF has them."""
  merges = json.loads(tokenizer.to_str())["model"]["merges"]
  return [" ".join(pair) for pair in merges]


def write_made(path, tokenizer, pre, **values):
  """A byte-level BPE as llama.cpp's converter writes it."""
  vocab = tokenizer.get_vocab()
  tokens = sorted(vocab, key=vocab.get)
  kinds = [{"<|end|>": 3, "<extra>": 4}.get(token, 1) for token in tokens]
  return write(path, tokens, kinds, **{
      "model": "gpt2", "pre": pre, "merges": merges_of(tokenizer),
      "eos_token_id": vocab["<|end|>"], **values})


PRE = package.pre_tokenizers


@pytest.mark.parametrize("name, rule", [
    ("gpt-2", PRE.ByteLevel(add_prefix_space=False)),
    ("smollm", PRE.Sequence([
        PRE.Digits(True), PRE.ByteLevel(add_prefix_space=False)])),
    ("llama-bpe", PRE.Sequence([
        PRE.Split(package.Regex(gguf_tokenizers._LLAMA_3_PATTERN), "isolated"),
        PRE.ByteLevel(add_prefix_space=False, use_regex=False)])),
    ("deepseek-coder", PRE.Sequence([
        *(PRE.Split(package.Regex(p), "isolated") for p in (
            "[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")),
        PRE.Digits(True),
        PRE.ByteLevel(add_prefix_space=False, use_regex=False)])),
])
def test_byte_level_bpe(tmp_path, name, rule):
  made = train(rule)
  ours = tokenizers.GgufTokenizer(write_made(
      tmp_path / "m.gguf", made, name, padding_token_id=7))
  assert ours.vocab_size == 602
  assert (ours.eos_id, ours.pad_id) == (made.token_to_id("<|end|>"), 7)
  assert ours.bos_id is None and ours.unk_id is None
  for text in sentences():
    ids = ours.encode(text)
    assert ids == made.encode(text).ids, text
    assert ours.decode(ids) == text.partition("<|end|>")[0]


def test_llama_3_pieces_without_merges(tmp_path, made):
  # A token that the merges do not lead to is found as a whole.
  vocab = made.get_vocab()
  tokens = [*sorted(vocab, key=vocab.get), "wholeword"]
  for pre, found in (("llama-bpe", True), ("gpt-2", False)):
    ours = tokenizers.GgufTokenizer(write(
        tmp_path / f"{pre}.gguf", tokens, model="gpt2", pre=pre,
        merges=merges_of(made)[:1], eos_token_id=0))
    assert (ours.encode("wholeword") == [len(tokens) - 1]) == found


@pytest.mark.parametrize("values, begins", [
    ({}, False), ({"add_bos_token": True}, True),
    ({"pre": "llama-bpe"}, True),
    ({"pre": "llama-bpe", "add_bos_token": False}, False)])
def test_beginning_of_sequence(tmp_path, made, values, begins):
  pre = values.pop("pre", "gpt-2")
  path = write_made(tmp_path / "m.gguf", made, pre, bos_token_id=5, **values)
  ours = tokenizers.GgufTokenizer(path)
  assert ours.encode_inputs("a") == [5] * begins + ours.encode("a")
  if begins:
    path = write_made(tmp_path / "n.gguf", made, pre, **values)
    with pytest.raises(errors.UserError, match="option bos_token"):
      tokenizers.GgufTokenizer(path).encode_inputs("a")


@pytest.mark.parametrize("values, what", [
    ({"pre": "somebody"}, "rule 'somebody'.*gpt-2, .*smollm.*TokenizerJson"),
    ({"pre": ""}, "rule ''"),
    ({"model": "bert"}, "kind 'bert'"),
    ({"merges": ["a"]}, "merge 'a'"),
    ({"merges": ["a doesnotexist"]}, "merge 'a doesnotexist'"),
    ({"merges": ["\x01 \x02"]}, "not two tokens that make a third"),
    ({"merges": [1, 2]}, "merges as an array.*texts"),
    ({"eos_token_id": 602}, "eos token is number 602"),
    ({"eos_token_id": "x"}, "eos token is number x"),
    ({"token_type": [1, 1]}, "602 tokens and 2 of"),
])
def test_other_gguf_tokenizers(tmp_path, made, values, what):
  vocab = made.get_vocab()
  values = {"model": "gpt2", "pre": "gpt-2", "merges": merges_of(made)[:1],
            "eos_token_id": 1, **values}
  path = write(tmp_path / "odd.gguf", sorted(vocab, key=vocab.get), **values)
  with pytest.raises(errors.UserError, match=f"odd.gguf .*{what}"):
    ours = tokenizers.GgufTokenizer(path)
    ours.encode("a")
    _ = ours.eos_id


def test_gguf_without_end_of_sequence(tmp_path):
  path = write(tmp_path / "m.gguf", ["a", "b", "ab"], model="gpt2",
               pre="gpt-2", merges=["a b"])
  with pytest.raises(errors.UserError, match="option eos_token"):
    _ = tokenizers.GgufTokenizer(path).eos_id
  assert tokenizers.GgufTokenizer(path, eos_token="b").eos_id == 1
  path = write(tmp_path / "m.gguf", ["a", "a"], model="gpt2", pre="gpt-2")
  with pytest.raises(errors.UserError, match="two tokens of the same text"):
    tokenizers.GgufTokenizer(path).encode("a")


@pytest.mark.parametrize("spaced", [True, False])
def test_sentencepiece_bpe(tmp_path, spaced):
  sentencepiece = pytest.importorskip("sentencepiece")
  text = tmp_path / "text"
  text.write_text("\n".join(
      t for t in sentences(PIECES[:36], 400) if "\n" not in t))
  sentencepiece.SentencePieceTrainer.train(
      input=str(text), model_prefix=str(tmp_path / "m"), model_type="bpe",
      vocab_size=600, byte_fallback=True, character_coverage=0.98,
      normalization_rule_name="identity", add_dummy_prefix=spaced,
      remove_extra_whitespaces=False, minloglevel=2)
  oracle = sentencepiece.SentencePieceProcessor(
      model_file=str(tmp_path / "m.model"))
  every = range(oracle.GetPieceSize())
  kinds = [2 if oracle.IsUnknown(i) else 3 if oracle.IsControl(i)
           else 6 if oracle.IsByte(i) else 1 for i in every]
  ours = tokenizers.GgufTokenizer(write(
      tmp_path / "m.gguf", [oracle.IdToPiece(i) for i in every], kinds,
      model="llama", scores=[oracle.GetScore(i) for i in every],
      add_space_prefix=spaced, bos_token_id=1, eos_token_id=2,
      unknown_token_id=0))
  assert (ours.vocab_size, ours.unk_id) == (600, 0)
  assert ours.encode_inputs("a") == [1, *ours.encode("a")]
  for text in sentences(PIECES[:-4]):
    if "\0" not in text:  # which ends a text for SentencePiece
      assert ours.encode(text) == oracle.EncodeAsIds(text), text
      assert ours.decode(ours.encode(text)) == text


@pytest.mark.parity
def test_smollm2_ids_are_transformers(smollm2):
  transformers = pytest.importorskip("transformers")
  oracle = transformers.AutoTokenizer.from_pretrained(
      smollm2.parent, gguf_file=smollm2.name)
  ours = tokenizers.GgufTokenizer(smollm2)
  assert ours.vocab_size == len(oracle) == 49152
  assert (ours.eos_id, ours.bos_id, ours.pad_id, ours.unk_id) == (
      oracle.eos_token_id, oracle.bos_token_id, oracle.pad_token_id,
      oracle.unk_token_id)
  # transformers leaves out SmolLM's rule, by which digits stand alone; that
  # shows where more than one space, or a byte of a space's token, precedes.
  texts = sentences((*PIECES, "<|im_start|>"))
  plain = [t for t in texts if not re.search(r"\s\s\d|\s[½²٣]", t)]
  assert len(plain) > 150
  for text in plain:
    assert ours.encode(text) == oracle(text)["input_ids"], text
  oracle.backend_tokenizer.pre_tokenizer = PRE.Sequence([
      PRE.Digits(True), PRE.ByteLevel(add_prefix_space=False)])
  for text in texts:
    ids = oracle(text)["input_ids"]
    assert ours.encode(text) == ours.encode_inputs(text) == ids, text
    assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


# ----------------------------------------------------------------- seqio


@pytest.mark.parity
def test_as_seqio(tmp_path, made):
  seqio = pytest.importorskip("seqio")
  save(tmp_path, template(made, "<extra> $A"),
       tokenizer_config={"eos_token": "<|end|>", "pad_token": "<extra>"})
  ours = tokenizers.TokenizerJson(tmp_path)
  wrapped = tokenizers.as_seqio(ours)
  assert isinstance(wrapped, seqio.Vocabulary)
  assert (wrapped.eos_id, wrapped.pad_id, wrapped.vocab_size) == (
      ours.eos_id, ours.pad_id, ours.vocab_size)
  assert wrapped == tokenizers.as_seqio(ours)
  assert wrapped != seqio.ByteVocabulary()
  assert vocabularies.from_seqio(wrapped) is ours
  inputs = tokenizers.as_seqio(ours, for_inputs=True)
  for text in ("", "the film", "東京 😀"):
    ids = ours.encode(text)
    assert wrapped.encode(text) == ids
    assert wrapped.encode_tf(text).numpy().tolist() == ids
    assert inputs.encode_tf(text).numpy().tolist() == ours.encode_inputs(text)
    ended = [*ids, ours.eos_id, *ids]
    assert wrapped.decode(ended) == text
  both = np.array([ours.encode("abab"), ours.encode("cdcd")])
  assert wrapped.decode_tf(both).numpy().tolist() == [b"abab", b"cdcd"]
