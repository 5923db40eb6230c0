"""Builds the tokenizer that a GGUF file describes.

The file holds tokens, their scores or merges, and the name of the rule that
cuts a text before merging; the rules themselves, which are part of each
model's published tokenizer, are here. A rule that is not here is refused: a
text cut otherwise gets other ids, and nothing would tell.
"""

from prompt_tuning import errors

_BPE, _SENTENCEPIECE = "gpt2", "llama"

# tokenizer.ggml.token_type
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

_SPACE = "▁"

# A merge of two tokens is looked for at each place of a longer one, which is
# of no use beyond any token's length and takes quadratic time.
_LONGEST_MERGED = 512

_GPT_2 = ("gpt-2", "phi-2")
_DIGITS = ("smollm", "starcoder", "refact")
_LLAMA_3 = ("llama-bpe", "llama3", "llama-v3")
_DEEPSEEK_CODER = ("deepseek-coder",)

_LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_DEEPSEEK_CODER_PATTERNS = (
    r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")


def build(file):
  """The `tokenizers.Tokenizer` of a GGUF file.

  Args:
    file: a `formats.gguf.GgufFile`.

  Returns:
    The tokenizer, which adds no special tokens by itself.

  Raises:
    UserError: if its kind or its rule for cutting texts is unknown, or its
      arrays do not fit together.
  """
  import tokenizers

  tokens = file.strings("tokenizer.ggml.tokens")
  kinds = _per_token(file, "token_type", len(tokens), _NORMAL)
  if len(set(tokens)) < len(tokens):
    raise errors.UserError(
        f"{file.path} has two tokens of the same text: convert the model "
        "again with a current llama.cpp.")
  make = {_BPE: _byte_pairs, _SENTENCEPIECE: _sentencepiece}.get(_model(file))
  if make is None:
    raise errors.UserError(
        f"{file.path} has a tokenizer of the kind {_model(file)!r} "
        f"(tokenizer.ggml.model): only {_BPE!r} and {_SENTENCEPIECE!r} are "
        "implemented; use the model's tokenizer.json (TokenizerJson).")
  tokenizer = make(file, tokens, kinds)
  added = [
      tokenizers.AddedToken(token, normalized=False, special=kind == _CONTROL)
      for token, kind in zip(tokens, kinds)
      if token and kind in (_CONTROL, _USER_DEFINED)]
  tokenizer.add_tokens(added)
  return tokenizer


def begins_with_bos(file) -> bool:
  """Whether texts begin with the beginning-of-sequence.

  Files of before there was a flag follow llama.cpp: yes for SentencePiece and
  for Llama 3.
  """
  by_kind = _model(file) == _SENTENCEPIECE or _rule(file) in _LLAMA_3
  return file.get("tokenizer.ggml.add_bos_token", by_kind)


def _model(file) -> str:
  return file.get("tokenizer.ggml.model", "")


def _rule(file) -> str:
  return file.get("tokenizer.ggml.pre", "")


def _per_token(file, name: str, count: int, default) -> list:
  """An array with a number for each token."""
  key = f"tokenizer.ggml.{name}"
  if key not in file:
    return [default] * count
  values = file.numbers(key).tolist()
  if len(values) != count:
    raise errors.UserError(
        f"{file.path} has {count} tokens and {len(values)} of {key}: copy the "
        "file again.")
  return values


def _byte_pairs(file, tokens: list[str], kinds: list[int]):
  """Byte-level BPE, as GPT-2's."""
  import tokenizers

  del kinds
  rule = _rule(file)
  pre_tokenizer = _pre_tokenizer(file, rule)
  vocab = {token: i for i, token in enumerate(tokens)}
  merges = [
      _merge(file, line, vocab)
      for line in file.strings("tokenizer.ggml.merges")]
  # Llama 3's tokens are found whole even where no merges lead to them.
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(
      vocab, merges, ignore_merges=rule in _LLAMA_3))
  tokenizer.pre_tokenizer = pre_tokenizer
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  return tokenizer


def _merge(file, line: str, vocab: dict[str, int]) -> tuple[str, str]:
  left, _, right = line.partition(" ")
  if not (left in vocab and right in vocab and left + right in vocab):
    raise errors.UserError(
        f"{file.path} has a merge {line!r} (tokenizer.ggml.merges), which is "
        "not two tokens that make a third: copy the file again.")
  return left, right


def _pre_tokenizer(file, rule: str):
  """What cuts a text into pieces within which bytes are merged."""
  import tokenizers
  from tokenizers import pre_tokenizers as pre

  def split(pattern):
    return pre.Split(tokenizers.Regex(pattern), "isolated")

  gpt_2 = pre.ByteLevel(add_prefix_space=False, use_regex=True)
  to_bytes = pre.ByteLevel(add_prefix_space=False, use_regex=False)
  digits = pre.Digits(individual_digits=True)
  if rule in _GPT_2:
    return gpt_2
  if rule in _DIGITS:
    return pre.Sequence([digits, gpt_2])
  if rule in _LLAMA_3:
    return pre.Sequence([split(_LLAMA_3_PATTERN), to_bytes])
  if rule in _DEEPSEEK_CODER:
    return pre.Sequence(
        [*map(split, _DEEPSEEK_CODER_PATTERNS), digits, to_bytes])
  known = (*_GPT_2, *_DIGITS, *_LLAMA_3, *_DEEPSEEK_CODER)
  raise errors.UserError(
      f"{file.path} cuts texts by the rule {rule!r} (tokenizer.ggml.pre): only "
      f"{', '.join(known)} are known; use the model's tokenizer.json "
      "(TokenizerJson).")


def _sentencepiece(file, tokens: list[str], kinds: list[int]):
  """SentencePiece's BPE, as Llama 2's."""
  import tokenizers
  from tokenizers import decoders, normalizers

  scores = _per_token(file, "scores", len(tokens), 0.0)
  unknown = file.get("tokenizer.ggml.unknown_token_id")
  known = type(unknown) is int and 0 <= unknown < len(tokens)
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=_merges_by_score(tokens, scores, kinds),
      unk_token=tokens[unknown] if known else None, fuse_unk=True,
      byte_fallback=True))
  spaced = file.get("tokenizer.ggml.add_space_prefix", True)
  spaces = normalizers.Replace(" ", _SPACE)
  tokenizer.normalizer = normalizers.Sequence(
      [normalizers.Prepend(_SPACE), spaces]) if spaced else spaces
  tokenizer.decoder = decoders.Sequence([
      decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
      *([decoders.Strip(" ", 1, 0)] if spaced else [])])
  return tokenizer


def _merges_by_score(
    tokens: list[str], scores: list[float], kinds: list[int]
) -> list[tuple[str, str]]:
  """The pairs of tokens that make another, the best token first.

  SentencePiece merges the neighbours that make the token of the best score;
  in this order, a BPE that takes the first merge of a list does the same.
  """
  ids = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds))
         if kind == _NORMAL}
  found = []
  for token, i in ids.items():
    if len(token) > _LONGEST_MERGED:
      continue
    pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
    found += [
        (-scores[i], ids[left], ids[right], left, right)
        for left, right in pairs if left in ids and right in ids]
  return [(left, right) for *_, left, right in sorted(found)]
