"""Texts to one vector each, by a small frozen language model.

LOPA and IDPG make a prompt of what an encoder says of the example. Encodings
of frozen encoders are computed once, in eval mode, so that they can be kept:
`InstanceEncoder.fingerprint` says for which encoder they hold.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import checkpoints, errors
from prompt_tuning.checkpoints import base, base_config, families
from prompt_tuning.data import token_ids, tokenizers
from prompt_tuning.models import causal_lm, text_encoder

# Of the text and of its frame, as LOPA's encoders get it.
MAX_LENGTH = 512

# Every length is one more compilation, every step between them wasted work.
_LENGTHS = (16, 32, 64, 128, 256, 512)

# How CodeSage's code, which is not run, is told apart.
_ENDS_IN_EOS = ("codesage",)

KEPT = ("start", "end")


class LastState(causal_lm.CausalLM):
  """A decoder-only model as an encoder: what it knows at the last token."""

  def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Tokens [B, T] and their mask [B, T] -> [B, H] float32."""
    mask = mask.astype(bool)
    return text_encoder.pooled(
        self.hidden(tokens, visible=mask), mask, "last_token")


class InstanceEncoder:
  """A text encoder with its tokenizer; files are read at first use.

  It is a BERT, RoBERTa or CodeSage in a Hugging Face directory, or any
  decoder-only model that can be read here. Encoders are immutable, so that
  copies (gin makes them) share one object.

  Attributes:
    cut: in how many texts, so far, how many tokens did not fit.
  """

  def __init__(
      self, path: str | os.PathLike,
      config: text_encoder.Config | causal_lm.Config | None = None,
      pooling: str | None = None, max_length: int = MAX_LENGTH,
      keep: str = "end", special_tokens: bool = True, batch_tokens: int = 4096,
      dtype: Any = "float32"):
    """Names the encoder; nothing is read yet.

    Args:
      path: a Hugging Face directory, or a GGUF file.
      config: what the files must be of; None: as they state.
      pooling: a name in `text_encoder.POOLINGS`. None: what the folder's
        modules.json says (sentence-transformers write it), or else the
        family's own: RoBERTa's first token, BERT's mean, CodeSage's normalised
        mean, the last token of a decoder-only model.
      max_length: most tokens of a text, special ones included; never more than
        the model has positions.
      keep: which part of longer texts: their "end", as LOPA does, for there a
        prompt has its question, or their "start".
      special_tokens: whether texts get what the tokenizer puts around them,
        such as <s> and </s>. The original gave CodeSage none, though it was
        trained with an end-of-sequence.
      batch_tokens: about how many tokens are run together, padding included;
        16 times as many keep an accelerator busy.
      dtype: of the weights and activations.

    Raises:
      UserError: if an option is none of those.
    """
    if keep not in KEPT:
      raise errors.UserError(
          f"InstanceEncoder.keep is {keep!r}; it can be 'start' or 'end'.")
    if max_length < 1 or batch_tokens < 1:
      raise errors.UserError(
          f"InstanceEncoder.max_length is {max_length} and batch_tokens "
          f"{batch_tokens}: both must be at least 1.")
    if pooling is not None and pooling not in text_encoder.POOLINGS:
      raise errors.UserError(
          f"InstanceEncoder.pooling is {pooling!r}; it can be "
          f"{', '.join(text_encoder.POOLINGS)}.")
    self.path = os.fspath(path)
    self.cut = token_ids.Truncation(0, 0)
    self._config, self._pooling = config, pooling
    self._max_length, self._keep = max_length, keep
    self._special_tokens = special_tokens
    self._batch_tokens, self._dtype = batch_tokens, jnp.dtype(dtype)

  def __repr__(self):
    return f"InstanceEncoder({self.path!r})"

  def __deepcopy__(self, memo):
    return self

  # ------------------------------------------------------------- what it is

  @functools.cached_property
  def config(self) -> text_encoder.Config | causal_lm.Config:
    """Sizes and options of the network.

    Raises:
      UserError: if the files are missing, of no encoder, or of another.
    """
    if self._config is not None:
      return self._config
    stated = getattr(self._weights, "config", None)
    config = families.of_type(self._weights.family, self.path).Config
    if stated is None or config not in (
        text_encoder.Config, causal_lm.Config):
      raise errors.UserError(
          f"{self.path} is a {self._weights.family}, which is no encoder of "
          "single texts: give the folder of a BERT, RoBERTa or CodeSage, or a "
          "decoder-only model.")
    return config(**stated, dtype=self._dtype, scan_layers=True)

  @property
  def width(self) -> int:
    """E, features of an encoding."""
    return self.config.embed_dim

  @functools.cached_property
  def pooling(self) -> str:
    """A name in `text_encoder.POOLINGS`."""
    if self._pooling is not None:
      return self._pooling
    if isinstance(self.config, causal_lm.Config):
      return "last_token"
    family = families.of_type(self._weights.family, self.path)
    return _sentence_transformers_pooling(self.path) or family.POOLING

  @functools.cached_property
  def module(self) -> nn.Module:
    """The network: (tokens [B, T], mask [B, T]) -> [B, E] float32."""
    if isinstance(self.config, text_encoder.Config):
      return text_encoder.TextEncoder(self.config, pooling=self.pooling)
    if self.pooling != "last_token":
      raise errors.UserError(
          f"{self.path} is a decoder-only model, whose encoding is its "
          f"'last_token', not {self.pooling!r}: leave the pooling out.")
    return LastState(self.config)

  def abstract(self) -> dict:
    """Shapes of the parameters, as nested dict; nothing is read or made."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(
        self.module.init, jax.random.key(0), one, one)["params"]

  @functools.cached_property
  def params(self) -> dict:
    """The weights, as nested dict; read once.

    Raises:
      UserError: if the files are missing, damaged or of another model.
    """
    base_config.check(self._weights, self.config)
    return base.load_base(
        self.path, self.abstract(), self._dtype, partial=True)

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of all that decides encodings: files, pooling, length, ids.

    How many are run together is not: it changes the last bits alone.
    """
    files = [self.path]
    if os.path.isdir(self.path):
      files = sorted(str(file) for file in pathlib.Path(self.path).glob(
          "*.safetensors"))
    facts = [
        [token_ids.sha256(pathlib.Path(file)) for file in files],
        self._vocabulary.fingerprint, self._frame, repr(self.config),
        self.pooling, self.max_length, self._keep]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

  @functools.cached_property
  def max_length(self) -> int:
    """Most tokens of a text, special ones included."""
    length = min(self._max_length, self.config.max_positions)
    around = sum(map(len, self._frame))
    if length <= around:
      raise errors.UserError(
          f"InstanceEncoder.max_length {length} leaves no room for a text: "
          f"{self.path} puts {around} tokens around it.")
    return length

  # ------------------------------------------------------------------ texts

  def tokenize(
      self, texts: Iterable[str], length: int | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Texts as rows of ids, padded on the right.

    Args:
      texts: N texts.
      length: T; None is that of the longest.

    Returns:
      Ids [N, T] int32 and their mask [N, T] bool, False is padding.

    Raises:
      UserError: on a text that is none, or has no token.
    """
    rows = self._rows(texts)
    return self._padded(rows, length or max(map(len, rows), default=1))

  def encode(self, texts: Iterable[str]) -> np.ndarray:
    """The encodings of N texts: [N, E] float32.

    Raises:
      UserError: see `tokenize`.
    """
    rows = self._rows(texts)
    out = np.zeros((len(rows), self.width), np.float32)
    for length, members in self._batches([len(row) for row in rows]):
      ids, mask = self._padded([rows[i] for i in members], length)
      # As many rows as another batch had, so that little is compiled.
      extra = _power_of_two(len(members)) - len(members)
      ids, mask = (np.pad(x, ((0, extra), (0, 0)), mode="edge")
                   for x in (ids, mask))
      found = np.asarray(self._run(self.params, ids, mask))
      out[members] = found[:len(members)]
    return out

  def _batches(
      self, lengths: Sequence[int]
  ) -> Iterator[tuple[int, list[int]]]:
    """(length to pad to, numbers of texts): all in batches of like length."""
    buckets = collections.defaultdict(list)
    for number, length in enumerate(lengths):
      buckets[self._bucket(length)].append(number)
    # Long ones first: what does not fit into memory fails at once.
    for length in sorted(buckets, reverse=True):
      most = max(1, self._batch_tokens // length)
      most = 1 << (most.bit_length() - 1)
      for start in range(0, len(buckets[length]), most):
        yield length, buckets[length][start:start + most]

  @functools.cached_property
  def _run(self):
    module = self.module
    return jax.jit(
        lambda params, ids, mask: module.apply({"params": params}, ids, mask))

  @functools.cached_property
  def _weights(self):
    return base.open_base(self.path)

  @functools.cached_property
  def _vocabulary(self) -> tokenizers.TokenizersVocabulary:
    return tokenizers.from_path(self.path)

  @functools.cached_property
  def _frame(self) -> tuple[list[int], list[int]]:
    """What stands around a text."""
    if not self._special_tokens:
      return [], []
    before, behind = self._vocabulary.frame
    if not behind and self._weights.family in _ENDS_IN_EOS:
      behind = [self._vocabulary.eos_id]
    return before, behind

  def _rows(self, texts: Iterable[str]) -> list[list[int]]:
    """The ids of each text, cut and in its frame."""
    texts = [_text(text, i) for i, text in enumerate(texts, start=1)]
    room = self.max_length - sum(map(len, self._frame))
    before, behind = self._frame
    rows, examples, tokens = [], 0, 0
    for number, ids in enumerate(self._vocabulary.encode_batch(texts), 1):
      if len(ids) > room:
        examples, tokens = examples + 1, tokens + len(ids) - room
        ids = ids[-room:] if self._keep == "end" else ids[:room]
      row = [*before, *ids, *behind]
      if not row:
        raise errors.UserError(
            f"text {number} for {self!r} has no token, so there is nothing to "
            "encode: leave the example out, or give it some text.")
      rows.append(row)
    self.cut = token_ids.Truncation(
        self.cut.examples + examples, self.cut.tokens + tokens)
    return rows

  def _padded(self, rows: Sequence[Sequence[int]], length: int):
    ids = np.full((len(rows), length), self._vocabulary.pad_id, np.int32)
    for row, found in zip(ids, rows):
      row[:len(found)] = found
    lengths = np.array([len(row) for row in rows], np.int32)
    return ids, np.arange(length) < lengths[:, None]

  def _bucket(self, length: int) -> int:
    fits = [n for n in _LENGTHS if length <= n <= self.max_length]
    return fits[0] if fits else self.max_length


@functools.lru_cache(maxsize=4)  # gin asks again for every use
def from_path(
    path: str | os.PathLike,
    config: text_encoder.Config | causal_lm.Config | None = None,
    pooling: str | None = None, max_length: int = MAX_LENGTH,
    keep: str = "end", special_tokens: bool = True, batch_tokens: int = 4096,
    dtype: Any = "float32",
) -> InstanceEncoder:
  """The encoder of a folder or GGUF file, the same object for the same one.

  Args:
    path: see `InstanceEncoder`, as for the others.
    config: the same.
    pooling: the same.
    max_length: the same.
    keep: the same.
    special_tokens: the same.
    batch_tokens: the same.
    dtype: the same.

  Raises:
    UserError: see `InstanceEncoder`.
  """
  return InstanceEncoder(
      path, config, pooling, max_length, keep, special_tokens, batch_tokens,
      dtype)


def _text(value: Any, number: int) -> str:
  """A text that can be tokenised."""
  try:
    if isinstance(value, bytes):
      return value.decode("utf-8")
    value.encode("utf-8")  # a lone surrogate cannot be
  except (UnicodeError, AttributeError) as error:
    raise errors.UserError(
        f"text {number} to encode is no text in UTF-8 "
        f"({type(value).__name__} {str(value)[:40]!r}): correct the example."
    ) from error
  return value


def _power_of_two(count: int) -> int:
  """The least that is not less."""
  return 1 << (count - 1).bit_length()


def _sentence_transformers_pooling(folder: str) -> str | None:
  """What a modules.json says; None if there is none.

  Raises:
    UserError: if it is of another kind than those that are known.
  """
  file = os.path.join(folder, "modules.json")
  if not os.path.isfile(file):
    return None
  with checkpoints.reading(file):
    modules = json.loads(pathlib.Path(file).read_text("utf-8"))
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    pools = [module["path"] for module, kind in zip(modules, kinds)
             if kind == "Pooling"]
    others = set(kinds) - {"Transformer", "Pooling", "Normalize"}
  if others or len(pools) != 1:
    raise errors.UserError(
        f"{file} has the modules {', '.join(kinds)}: set the encoder's pooling "
        "to a name, if one of ours is meant.")
  file = os.path.join(folder, os.path.basename(pools[0]), "config.json")
  with checkpoints.reading(file):
    content = json.loads(pathlib.Path(file).read_text("utf-8"))
    modes = tuple(sorted(
        name for name, value in content.items()
        if name.startswith("pooling_mode_") and value))
  found = {
      ("pooling_mode_cls_token",): ("first_token", None),
      ("pooling_mode_mean_tokens",): ("mean", "normalized_mean"),
      ("pooling_mode_lasttoken",): ("last_token", None)}.get(
          modes, (None, None))["Normalize" in kinds]
  if found is None:
    raise errors.UserError(
        f"{file} pools by {', '.join(modes)}"
        f"{' at length 1' if 'Normalize' in kinds else ''}, which is not "
        "implemented: set the encoder's pooling to one that is.")
  return found
