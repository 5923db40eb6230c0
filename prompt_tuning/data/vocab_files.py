"""Tokenizers of folders that have no tokenizer.json.

Older models were published with their parts alone: BERT with vocab.txt, and
GPT-2, RoBERTa, CodeBERT and BART with vocab.json and merges.txt. How a text is
cut before merging, and what stands around it, is the family's.
"""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

# Types of config.json whose tokenizer is RoBERTa's.
_ROBERTAS = ("roberta", "bart")

# Tokens that their vocabularies have, whatever their files say.
_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def parts(folder: str) -> tuple[str, ...]:
  """The files of `folder` that make a tokenizer; none if it has none."""
  for names in (("vocab.txt",), ("vocab.json", "merges.txt")):
    files = tuple(os.path.join(folder, name) for name in names)
    if all(map(os.path.isfile, files)):
      return files
  return ()


def build(
    files: tuple[str, ...], model: Mapping[str, Any],
    settings: Mapping[str, Any],
):
  """The `tokenizers.Tokenizer` of such files.

  Args:
    files: from `parts`.
    model: config.json's content, whose `model_type` tells `_ROBERTAS` from
      GPT-2.
    settings: tokenizer_config.json's content.

  Raises:
    Exception: what the package or the files' readers say of damaged ones.
  """
  if len(files) == 1:
    return _word_pieces(files[0], settings)
  return _byte_pairs(*files, model.get("model_type") in _ROBERTAS, settings)


def _word_pieces(file: str, settings: Mapping[str, Any]):
  """BERT's: cleaned, lower case if so trained, longest pieces first."""
  import tokenizers
  from tokenizers import models, normalizers, pre_tokenizers, processors

  tokens = pathlib.Path(file).read_text("utf-8").split("\n")
  vocab = {token.rstrip("\r"): i for i, token in enumerate(tokens) if token}
  special = {
      name: settings.get(f"{name}_token") or f"[{name.upper()}]"
      for name in ("unk", "cls", "sep", "pad", "mask")}
  built = tokenizers.Tokenizer(models.WordPiece(
      vocab, unk_token=special["unk"], max_input_chars_per_word=100))
  built.normalizer = normalizers.BertNormalizer(
      clean_text=True,
      handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
      strip_accents=settings.get("strip_accents"),
      lowercase=settings.get("do_lower_case", True))
  built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  built.add_special_tokens(
      [token for token in special.values() if token in vocab])
  built.post_processor = processors.BertProcessing(*(
      (special[name], vocab[special[name]]) for name in ("sep", "cls")))
  return built


def _byte_pairs(
    vocab_file: str, merges_file: str, is_roberta: bool,
    settings: Mapping[str, Any],
):
  """GPT-2's, and what RoBERTa puts around a text."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, processors

  vocab = json.loads(pathlib.Path(vocab_file).read_text("utf-8"))
  built = tokenizers.Tokenizer(models.BPE(
      vocab, models.BPE.read_file(vocab_file, merges_file)[1]))
  built.pre_tokenizer = pre_tokenizers.ByteLevel(
      add_prefix_space=settings.get("add_prefix_space", False))
  built.decoder = decoders.ByteLevel()
  special = [token for token in (*_ROBERTA, "<|endoftext|>") if token in vocab]
  built.add_special_tokens([
      # The mask takes the space before it along, as in RoBERTa's training.
      tokenizers.AddedToken(token, lstrip=token == "<mask>", special=True)
      for token in special])
  if is_roberta:
    built.post_processor = processors.RobertaProcessing(
        ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), trim_offsets=False,
        add_prefix_space=False)
  return built
