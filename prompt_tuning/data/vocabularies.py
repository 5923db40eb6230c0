"""Text to token ids and back, without TensorFlow.

Ids and texts are those of seqio's vocabularies for the same model file: 0
pads, extra ids (T5's sentinels) come after the pieces with `<extra_id_0>` as
the highest id, and decoding stops at the first end-of-sequence. Two
vocabularies are the same when they hold the same pieces, wherever their files
lie.
"""

from collections.abc import Iterable, Iterator
import functools
import hashlib
import pathlib
import struct
from typing import Any

from prompt_tuning import errors

PAD_ID = 0

# Field numbers of SentencePiece's ModelProto that decide how it tokenises.
# The trainer's settings (2) name files and sizes of the training run, which
# differ between copies of one vocabulary.
_PIECES, _NORMALIZER = 1, 3

# ModelProto.SentencePiece.Type
_USER_DEFINED = 4


class Vocabulary:
  """What every vocabulary offers; subclasses give ids and their meaning.

  Vocabularies are immutable, so copies (gin makes them) share one object.
  """

  pad_id = PAD_ID
  eos_id: int
  bos_id: int | None = None
  unk_id: int | None
  vocab_size: int
  fingerprint: str

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without end-of-sequence."""
    raise NotImplementedError

  def encode_inputs(self, text: str) -> list[int]:
    """The ids of a text that a decoder goes on from.

    Some tokenizers put a beginning-of-sequence in front of every text.
    """
    return self.encode(text)

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids up to the first end-of-sequence."""
    raise NotImplementedError

  def piece(self, number: int) -> str | None:
    """The piece of one id as the vocabulary writes it; None if it has none."""
    raise NotImplementedError

  def same_as(self, other: "Vocabulary") -> bool:
    """Whether both give the same ids to every text."""
    return self.fingerprint == other.fingerprint

  def __deepcopy__(self, memo):
    return self

  def _before_eos(self, ids: Iterable[int]) -> list[int]:
    ids = [int(i) for i in ids]
    return ids[:ids.index(self.eos_id)] if self.eos_id in ids else ids


class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model with sentinels after its pieces.

  The file is read at first use, so that a gin file can name a vocabulary that
  a command does not need.
  """

  def __init__(
      self, sentencepiece_model_file: str | pathlib.Path, extra_ids: int = 0):
    """Names the model; nothing is read yet.

    Args:
      sentencepiece_model_file: a `.model` file as SentencePiece writes it.
      extra_ids: sentinels `<extra_id_0>` ... to add above the pieces; T5's
        `spiece.model` of 32,000 pieces takes 100.
    """
    self.sentencepiece_model_file = str(sentencepiece_model_file)
    self.extra_ids = extra_ids
    self._given_bytes: bytes | None = None

  @classmethod
  def from_bytes(
      cls, model: bytes, extra_ids: int = 0, name: str = "<bytes>"
  ) -> "SentencePieceVocabulary":
    """A vocabulary from a model's content; `name` is for error messages."""
    vocabulary = cls(name, extra_ids)
    vocabulary._given_bytes = model
    return vocabulary

  def __repr__(self):
    return (f"SentencePieceVocabulary({self.sentencepiece_model_file!r}, "
            f"extra_ids={self.extra_ids})")

  def encode(self, text: str) -> list[int]:
    return self._processor.EncodeAsIds(text)

  def decode(self, ids: Iterable[int]) -> str:
    size = self.vocab_size
    known = [i if 0 <= i < size else self.unk_id
             for i in self._before_eos(ids)]
    return self._processor.DecodeIds(known)

  def piece(self, number: int) -> str | None:
    known = 0 <= number < self.vocab_size
    return self._processor.IdToPiece(number) if known else None

  @property
  def vocab_size(self) -> int:
    """Pieces and extra ids together."""
    return self._processor.GetPieceSize()

  @property
  def eos_id(self) -> int:
    return self._processor.eos_id()

  @property
  def unk_id(self) -> int:
    return self._processor.unk_id()

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of the pieces, extra ids included, and of the normalizer."""
    pieces, normalizer = hashlib.sha256(), b""
    for number, value in _fields(self._model):
      if number == _PIECES:
        pieces.update(struct.pack("<q", len(value)) + value)
      elif number == _NORMALIZER:
        normalizer = value
    return hashlib.sha256(
        b"sentencepiece" + pieces.digest() + normalizer).hexdigest()

  @functools.cached_property
  def _model(self) -> bytes:
    """The serialised model with the extra ids among its pieces.

    A repeated field of a protocol buffer grows by concatenation, so the
    pieces are appended as bytes and no protobuf package is needed.
    """
    model = self._given_bytes
    if model is None:
      try:
        model = pathlib.Path(self.sentencepiece_model_file).read_bytes()
      except OSError as error:
        raise errors.UserError(
            f"cannot read the vocabulary {self.sentencepiece_model_file}: "
            f"{error.strerror}; give the path of a SentencePiece model "
            "(sentencepiece_model_file)") from error
    sentinels = (_sentinel(i) for i in reversed(range(self.extra_ids)))
    return model + b"".join(sentinels)

  @functools.cached_property
  def _processor(self):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
      numbers = {number for number, _ in _fields(self._model)}
      if _PIECES not in numbers:
        raise ValueError("it has no pieces")
      processor.LoadFromSerializedProto(self._model)
    except (ValueError, RuntimeError, OSError) as error:
      raise errors.UserError(
          f"{self.sentencepiece_model_file} is not a whole SentencePiece "
          f"model ({error}); copy it again from its source") from error
    if processor.eos_id() < 0 or processor.unk_id() < 0:
      raise errors.UserError(
          f"the SentencePiece model {self.sentencepiece_model_file} lacks an "
          "end-of-sequence or an unknown piece; use the vocabulary that the "
          "model was trained with")
    return processor


class ByteVocabulary(Vocabulary):
  """UTF-8 bytes as ids, for ByT5 (https://arxiv.org/abs/2105.13626).

  Ids are byte + 3; 0 pads, 1 ends a sequence, 2 is unknown. Extra ids have no
  text: decoding leaves them out, as it does incomplete UTF-8 sequences.
  """

  eos_id = 1
  unk_id = 2
  _FIRST_BYTE = 3

  def __init__(self, extra_ids: int = 0):
    """A vocabulary of 259 ids, plus `extra_ids` (ByT5's models take 125)."""
    self.extra_ids = extra_ids
    self.vocab_size = self._FIRST_BYTE + 256 + extra_ids
    self.fingerprint = hashlib.sha256(
        f"bytes {extra_ids}".encode()).hexdigest()

  def __repr__(self):
    return f"ByteVocabulary(extra_ids={self.extra_ids})"

  def encode(self, text: str) -> list[int]:
    return [byte + self._FIRST_BYTE for byte in text.encode("utf-8")]

  def decode(self, ids: Iterable[int]) -> str:
    found = (i - self._FIRST_BYTE for i in self._before_eos(ids))
    return bytes(i for i in found if 0 <= i < 256).decode("utf-8", "ignore")

  def piece(self, number: int) -> str | None:
    byte = number - self._FIRST_BYTE
    return f"<0x{byte:02X}>" if 0 <= byte < 256 else None


def from_seqio(vocabulary: Any) -> Vocabulary:
  """Our vocabulary for a seqio one; ours pass through.

  Args:
    vocabulary: a seqio `SentencePieceVocabulary` or `ByteVocabulary`, or one
      that `tokenizers.as_seqio` made.

  Raises:
    UserError: another kind, or options that change the ids.
  """
  if isinstance(vocabulary, Vocabulary):
    return vocabulary
  if isinstance(ours := getattr(
      vocabulary, "prompt_tuning_vocabulary", None), Vocabulary):
    return ours
  kind = type(vocabulary).__name__
  if kind == "ByteVocabulary":
    return ByteVocabulary(vocabulary.extra_ids)
  plain = kind == "SentencePieceVocabulary" and not getattr(
      vocabulary, "_normalizer_spec_overrides", None) and getattr(
          vocabulary, "_reverse_extra_ids", True)
  if not plain:
    raise errors.UserError(
        f"the seqio vocabulary {vocabulary} is not supported; use "
        "seqio.SentencePieceVocabulary with its default options, or "
        "seqio.ByteVocabulary")
  path = vocabulary.sentencepiece_model_file
  if "://" not in str(path):
    return SentencePieceVocabulary(path, vocabulary.extra_ids)
  from tensorflow.io import gfile  # a bucket: seqio reads it the same way

  with gfile.GFile(path, "rb") as file:
    return SentencePieceVocabulary.from_bytes(
        file.read(), vocabulary.extra_ids, path)


def _sentinel(index: int) -> bytes:
  """`<extra_id_index>` as a serialised field `pieces` of a ModelProto."""
  text = f"▁<extra_id_{index}>".encode()
  piece = (b"\x0a" + bytes([len(text)]) + text  # piece
           + b"\x15" + struct.pack("<f", 0.0)  # score
           + b"\x18" + bytes([_USER_DEFINED]))  # type
  return b"\x0a" + bytes([len(piece)]) + piece


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
  """Number and content of each length-delimited field of a protocol buffer.

  Raises:
    ValueError: the bytes are no protocol buffer or end too early.
  """
  position = 0
  while position < len(message):
    tag, position = _varint(message, position)
    kind = tag & 7
    if kind == 2:
      size, position = _varint(message, position)
    elif kind == 0:
      _, position = _varint(message, position)
      continue
    elif kind in (1, 5):
      size = 8 if kind == 1 else 4
    else:
      raise ValueError(f"it has an impossible field at byte {position}")
    if position + size > len(message):
      raise ValueError(f"it ends inside the field at byte {position}")
    if kind == 2:
      yield tag >> 3, message[position:position + size]
    position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
  value = 0
  for shift in range(0, 64, 7):
    if position >= len(message):
      raise ValueError("it ends inside a number")
    byte = message[position]
    position += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, position
  raise ValueError(f"it has an impossible number at byte {position}")
