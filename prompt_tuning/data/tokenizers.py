"""Tokenizers of Hugging Face's folders, and GGUF's own.

Both are run by the `tokenizers` package. Which ids end, begin or pad a text
comes from the files beside the tokenizer, or from the user; what no file says
is asked for, not guessed. Only the padding may be missing: masks come from
positions, so that 0, whatever token that is, serves as well.
"""

from collections.abc import Iterable, Sequence
import contextlib
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

from prompt_tuning import errors
from prompt_tuning.data import vocab_files, vocabularies

_SPECIAL = ("bos", "eos", "pad", "unk", "mask")

# BERT begins and ends a text with tokens of other names.
_OTHER_NAMES = {"bos": "cls", "eos": "sep"}

# What in a tokenizer.json has no say in the ids of a text.
_NOT_IDS = ("version", "truncation", "padding", "decoder", "post_processor")


class TokenizersVocabulary(vocabularies.Vocabulary):
  """What both sources share; the file is read at first use.

  Attributes:
    path: the file, as the user gave it.
  """

  def __init__(
      self, path: str | os.PathLike, *, eos_token: str | None = None,
      bos_token: str | None = None, pad_token: str | None = None,
      unk_token: str | None = None, add_bos: bool | None = None):
    """Names the file; nothing is read yet.

    Args:
      path: see the subclass.
      eos_token: the text of the token that ends a sequence, instead of the
        files' own.
      bos_token: the same for the one that begins it.
      pad_token: the same for padding.
      unk_token: the same for what is unknown.
      add_bos: whether inputs begin with the beginning-of-sequence; None: as
        the files say.
    """
    self.path = os.fspath(path)
    self._given = {
        "eos": eos_token, "bos": bos_token, "pad": pad_token,
        "unk": unk_token, "mask": None}
    self._add_bos = add_bos

  def __repr__(self):
    given = "".join(
        f", {name}_token={token!r}" for name, token in self._given.items()
        if token is not None)
    if self._add_bos is not None:
      given += f", add_bos={self._add_bos}"
    return f"{type(self).__name__}({self.path!r}{given})"

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_inputs(self, text: str) -> list[int]:
    """The ids of a text behind what the tokenizer begins every text with."""
    return [*self._prefix, *self.encode(text)]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts, on all cores."""
    return [found.ids for found in self._tokenizer.encode_batch(
        list(texts), add_special_tokens=False)]

  @functools.cached_property
  def frame(self) -> tuple[list[int], list[int]]:
    """What the files put in front of a single text and behind it."""
    return self._own_prefix(), []

  def decode(self, ids: Iterable[int]) -> str:
    """The text before the first end-of-sequence, without special tokens.

    Ids that no token has are left out.
    """
    size = self.vocab_size
    known = [i for i in self._before_eos(ids) if 0 <= i < size]
    return self._tokenizer.decode(known, skip_special_tokens=True)

  def piece(self, number: int) -> str | None:
    return self._tokenizer.id_to_token(number) if number >= 0 else None

  @functools.cached_property
  def vocab_size(self) -> int:
    """The highest id, of added tokens too, plus one."""
    return 1 + max(self._tokenizer.get_vocab(True).values(), default=-1)

  @functools.cached_property
  def eos_id(self) -> int:
    """The id that ends a sequence.

    Raises:
      UserError: if no file names it.
    """
    found = self._special("eos")
    if found is None and self.frame[1]:
      return self.frame[1][-1]
    if found is None:
      raise errors.UserError(
          f"no file says which token ends a sequence of {self.path}: set its "
          "option eos_token to that token's text, such as '</s>'")
    return found

  @functools.cached_property
  def bos_id(self) -> int | None:
    """The id that begins a sequence, None where no file names one."""
    return self._special("bos")

  @functools.cached_property
  def pad_id(self) -> int:
    """The id that pads; 0 where no file names one (see the module)."""
    found = self._special("pad")
    return vocabularies.PAD_ID if found is None else found

  @functools.cached_property
  def unk_id(self) -> int | None:
    """The id of what is unknown; tokenizers of bytes have none."""
    return self._special("unk")

  @functools.cached_property
  def mask_id(self) -> int:
    """The id in whose place a masked language model predicts.

    Raises:
      UserError: if no file names it.
    """
    found = self._special("mask")
    if found is None:
      raise errors.UserError(
          f"no file says which token of {self.path} is the mask, so it is no "
          "masked language model: add \"mask_token\" to its "
          "tokenizer_config.json, or take a RoBERTa")
    return found

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of what decides ids: rules, tokens, beginning and end."""
    content = json.loads(self._tokenizer.to_str())
    for name in _NOT_IDS:
      content.pop(name, None)
    facts = [content, self._prefix, self.eos_id]
    return hashlib.sha256(
        json.dumps(facts, sort_keys=True).encode()).hexdigest()

  def _special(self, name: str) -> int | None:
    """The id of a special token: as the user says, or else the files."""
    token = self._given[name]
    if token is None:
      token = self._stored[name]
    if not isinstance(token, str):
      return token
    found = self._tokenizer.token_to_id(token)
    if found is None:
      raise errors.UserError(
          f"the {name} token {token!r} is not in the vocabulary of "
          f"{self.path}: set {name}_token to one that is")
    return found

  @property
  def _tokenizer(self):
    """The `tokenizers.Tokenizer`, without cutting and padding."""
    raise NotImplementedError

  @property
  def _stored(self) -> dict[str, str | int | None]:
    """Text or id of each of `_SPECIAL` as the files have them."""
    raise NotImplementedError

  def _own_prefix(self) -> list[int]:
    """What every text begins with by the files' word."""
    raise NotImplementedError

  @functools.cached_property
  def _prefix(self) -> list[int]:
    """What every text begins with."""
    if self._add_bos is None:
      return self._own_prefix()
    return self._bos_prefix() if self._add_bos else []

  def _bos_prefix(self) -> list[int]:
    if self.bos_id is None:
      raise errors.UserError(
          f"{self.path} says that texts begin with a special token and does "
          "not say which: set its option bos_token")
    return [self.bos_id]


class TokenizerJson(TokenizersVocabulary):
  """A tokenizer.json, or the Hugging Face directory that holds it.

  Special tokens come from tokenizer_config.json, special_tokens_map.json or
  config.json beside it, whichever names one first.
  """

  @functools.cached_property
  def _file(self) -> str:
    """tokenizer.json, or the first of the files that stand for it."""
    if not os.path.isdir(self.path):
      return self.path
    file = os.path.join(self.path, "tokenizer.json")
    if os.path.isfile(file):
      return file
    if parts := vocab_files.parts(self.path):
      return parts[0]
    if os.path.isfile(os.path.join(self.path, "tokenizer.model")):
      raise errors.UserError(
          f"{self.path} has no tokenizer.json, but a SentencePiece model: use "
          "SentencePieceVocabulary on its tokenizer.model")
    raise errors.UserError(
        f"{self.path} has no tokenizer.json; make one where transformers is "
        f"installed: AutoTokenizer.from_pretrained({self.path!r})"
        f".save_pretrained({self.path!r})")

  @functools.cached_property
  def _tokenizer(self):
    import tokenizers

    if os.path.basename(self._file) in ("vocab.txt", "vocab.json"):
      return self._of_parts()
    try:
      content = pathlib.Path(self._file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
      raise errors.UserError(
          f"cannot read the tokenizer {self._file} "
          f"({getattr(error, 'strerror', error)}): give a tokenizer.json or "
          "the folder that holds it") from error
    with _understood(self._file):
      tokenizer = tokenizers.Tokenizer.from_str(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

  def _of_parts(self):
    settings, _, model = self._configs
    with _understood(self._file):
      return vocab_files.build(
          vocab_files.parts(os.path.dirname(self._file)), model, settings)

  @functools.cached_property
  def _configs(self) -> list[dict[str, Any]]:
    """The files beside the tokenizer, the first to be asked first."""
    folder = os.path.dirname(self._file)
    return [_read_json(os.path.join(folder, name)) for name in (
        "tokenizer_config.json", "special_tokens_map.json", "config.json")]

  @functools.cached_property
  def _stored(self) -> dict[str, str | int | None]:
    *named, model = self._configs
    found = {}
    for name in _SPECIAL:
      names = [name, *filter(None, [_OTHER_NAMES.get(name)])]
      tokens = [_token_text(config.get(f"{name}_token"))
                for name in names for config in named]
      number = model.get(f"{name}_token_id")  # a list: any of them ends it
      tokens.append(number if type(number) is int and number >= 0 else None)
      found[name] = next((t for t in tokens if t is not None), None)
    return found

  @functools.cached_property
  def frame(self) -> tuple[list[int], list[int]]:
    """What the tokenizer's own template puts around a text.

    The end-of-sequence is also behind it if tokenizer_config.json says so.
    """
    plain = self.encode("a")
    whole = self._tokenizer.encode("a", add_special_tokens=True).ids
    starts = (i for i in range(len(whole))
              if plain and whole[i:i + len(plain)] == plain)
    start = next(starts, None)
    if start is None:
      return [], []
    suffix = whole[start + len(plain):]
    if not suffix and self._configs[0].get("add_eos_token"):
      suffix = [self.eos_id]
    return whole[:start], suffix

  def _own_prefix(self) -> list[int]:
    """What the tokenizer's own template puts in front.

    Libraries differ in whether tokenizer_config.json overrules the template.
    """
    prefix = self.frame[0]
    asked = self._configs[0].get("add_bos_token")
    if asked is not None and bool(asked) != bool(prefix):
      raise errors.UserError(
          f"{self.path}: tokenizer_config.json has add_bos_token {asked}, but "
          f"tokenizer.json puts {'something' if prefix else 'nothing'} before "
          "a text: set ADD_BOS (add_bos) to True or False, as the model was "
          "trained")
    return prefix


class GgufTokenizer(TokenizersVocabulary):
  """The tokenizer in the metadata of a GGUF file."""

  @functools.cached_property
  def _metadata(self):
    from prompt_tuning.formats import gguf

    return gguf.GgufFile(self.path)

  @functools.cached_property
  def _tokenizer(self):
    from prompt_tuning.data import gguf_tokenizers

    with _understood(self.path):
      return gguf_tokenizers.build(self._metadata)

  @functools.cached_property
  def _stored(self) -> dict[str, str | int | None]:
    found = {
        name: self._metadata.get(f"tokenizer.ggml.{word}_token_id")
        for name, word in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"),
                           ("unk", "unknown"), ("mask", "mask"))}
    for name, value in found.items():
      known = value is None or (
          type(value) is int and 0 <= value < self.vocab_size)
      if not known and self._given[name] is None:
        raise errors.UserError(
            f"{self.path} says that its {name} token is number {value}, which "
            f"its vocabulary does not have: set {name}_token")
    return found

  def _own_prefix(self) -> list[int]:
    from prompt_tuning.data import gguf_tokenizers

    begins = gguf_tokenizers.begins_with_bos(self._metadata)
    return self._bos_prefix() if begins else []


@functools.lru_cache(maxsize=4)  # gin asks again for every use
def from_path(
    path: str | os.PathLike, *, eos_token: str | None = None,
    bos_token: str | None = None, pad_token: str | None = None,
    unk_token: str | None = None,
    add_bos: bool | None = None) -> TokenizersVocabulary:
  """The tokenizer of a base model, wherever its weights are kept.

  Args:
    path: a GGUF file; else a tokenizer.json, or the folder that holds it.
    eos_token: see `TokenizersVocabulary`, as for the others.
    bos_token: the same.
    pad_token: the same.
    unk_token: the same.
    add_bos: the same.

  Raises:
    UserError: if there is no path.
  """
  if path is None:
    raise errors.UserError(
        "There is no tokenizer: set VOCABULARY_FILE to a tokenizer.json or the "
        "folder that holds it, or to a .gguf file.")
  kind = (GgufTokenizer if os.fspath(path).endswith(".gguf")
          else TokenizerJson)
  return kind(path, eos_token=eos_token, bos_token=bos_token,
              pad_token=pad_token, unk_token=unk_token, add_bos=add_bos)


def as_seqio(vocabulary: vocabularies.Vocabulary, for_inputs: bool = False):
  """A `seqio.Vocabulary` for the output features of a seqio task.

  Args:
    vocabulary: any of ours.
    for_inputs: whether texts are inputs of a decoder-only model, which begin
      with the tokenizer's beginning-of-sequence, if it has one.

  Returns:
    The vocabulary; a task that has it is read here with ours again.
  """
  import seqio
  import tensorflow as tf

  encode = vocabulary.encode_inputs if for_inputs else vocabulary.encode

  class Vocabulary(seqio.Vocabulary):
    """Runs ours, in TensorFlow as a Python function."""

    prompt_tuning_vocabulary = vocabulary
    eos_id = property(lambda self: vocabulary.eos_id)
    bos_id = property(lambda self: vocabulary.bos_id)
    unk_id = property(lambda self: vocabulary.unk_id)
    pad_id = property(lambda self: vocabulary.pad_id)
    _base_vocab_size = property(lambda self: vocabulary.vocab_size)

    def _encode(self, s):
      return encode(tf.compat.as_text(s))

    def _decode(self, ids):
      return vocabulary.decode(ids)

    def _encode_tf(self, s):
      ids = tf.py_function(
          lambda text: tf.constant(self._encode(text.numpy()), tf.int32),
          [s], tf.int32)
      return tf.ensure_shape(ids, [None])

    def _decode_tf(self, ids):
      def decode(ids):
        rows = ids.numpy()
        texts = [vocabulary.decode(row) for row in rows.reshape(
            -1, rows.shape[-1])]
        return tf.reshape(tf.constant(texts), rows.shape[:-1])

      return tf.ensure_shape(
          tf.py_function(decode, [ids], tf.string), ids.shape[:-1])

    def __eq__(self, other):
      ours = getattr(other, "prompt_tuning_vocabulary", None)
      return ours is not None and vocabulary.same_as(ours)

    __hash__ = seqio.Vocabulary.__hash__

  return Vocabulary()


@contextlib.contextmanager
def _understood(file: str):
  """What the tokenizers package says of a bad file, as one sentence."""
  try:
    yield
  except (errors.UserError, KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # a panic of its Rust is no Exception
    reason = " ".join(str(error).split())[:200]
    raise errors.UserError(
        f"the tokenizer of {file} is damaged or of an unknown kind "
        f"({reason}): copy the file again, or update the package tokenizers"
    ) from error


def _read_json(file: str) -> dict[str, Any]:
  """A JSON object; empty if there is no such file."""
  if not os.path.isfile(file):
    return {}
  try:
    with open(file, encoding="utf-8") as stream:
      content = json.load(stream)
  except (OSError, ValueError, RecursionError) as error:
    raise errors.UserError(
        f"cannot read {file} ({error}): copy it again") from error
  if not isinstance(content, dict):
    raise errors.UserError(f"{file} is not a JSON object: copy it again")
  return content


def _token_text(value: Any) -> str | None:
  """A special token's text, written plainly or with how it is matched."""
  if isinstance(value, dict):
    value = value.get("content")
  return value if isinstance(value, str) else None
