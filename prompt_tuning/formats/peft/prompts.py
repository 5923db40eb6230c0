"""Prompts and prefixes between PEFT's tables and our parameters.

PEFT makes a table for both halves of an encoder-decoder (S = 2). For prompts
only the encoder's half is ever used; a multitask prompt stands in front of the
decoder as well. A prefix has one table for the decoder's layers, of which
layer i reads the prefix layer 2 i mod L (its cross-attention took the ones
between): `to_params` gives what each layer reads.
"""

from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

from prompt_tuning import errors
from prompt_tuning.formats.peft import configs
from prompt_tuning.formats.peft.base import Base
from prompt_tuning.formats.peft.files import Adapter

TABLE = "prompt_embeddings"
COLS = "prefix_task_cols"
ROWS = "prefix_task_rows"


def to_params(adapter: Adapter, base: Base) -> dict[str, Any]:
  """See `peft.to_params`."""
  if adapter.type == "PREFIX_TUNING":
    flat = {"decoder/prefix/prefix": _prefix(adapter, base)}
  elif adapter.type == "MULTITASK_PROMPT_TUNING":
    flat = _multitask(adapter, base)
  else:
    length, halves = _lengths(adapter, base)
    table = _tensor(
        adapter, base, TABLE, (length * halves, base.embed_dim))
    flat = {f"{base.prompt_path}/prompt": table[:length]}
  _refuse_others(adapter)
  return flax.traverse_util.unflatten_dict(flat, sep="/")


def plain_table(adapter: Adapter) -> np.ndarray:
  """The prompt [P, H] of a PROMPT_TUNING or P_TUNING, for no model yet.

  Raises:
    UserError: if the table is not of the length that the adapter says.
  """
  length = length_of(adapter)
  table = adapter.tensors.get(TABLE)
  halves = adapter.config["num_transformer_submodules"]
  if halves is None:
    halves = 2 if adapter.config["task_type"] == "SEQ_2_SEQ_LM" else 1
  if table is None or table.ndim != 2 or len(table) != length * halves:
    raise errors.UserError(
        f"{adapter.path} has {TABLE} "
        f"{'missing' if table is None else table.shape}, and {length} x "
        f"{halves} rows are needed: copy the adapter again.")
  return table[:length].astype(np.float32)


def from_params(
    params: Mapping[str, Any], base: Base, kind: str, fields: Mapping[str, Any]
) -> Adapter:
  """See `peft.from_params`."""
  flat = {
      path: np.asarray(value, np.float32)
      for path, value in flax.traverse_util.flatten_dict(
          dict(params), sep="/").items()
      if path.startswith((
          base.prompt_path, "decoder/p", "encoder/prefix/",
          "decoder/cross_prefix/"))}
  sizes = {
      "base_model_name_or_path": base.name, "task_type": base.task,
      "num_layers": base.num_layers, "num_attention_heads": base.num_heads,
      "token_dim": base.embed_dim,
      "num_transformer_submodules": 2 if base.is_encoder_decoder else 1}
  if kind == "PREFIX_TUNING":
    tensors, more = _from_prefix(flat, base)
  elif kind == "MULTITASK_PROMPT_TUNING":
    tensors, more = _from_multitask(flat, base)
  else:
    tensors, more = _from_prompt(flat, base)
  config = configs.of(kind, sizes | more | dict(fields))
  if "encoder_hidden_size" in config and config["encoder_hidden_size"] is None:
    config["encoder_hidden_size"] = config["token_dim"]
  return Adapter(kind, config, tensors)


# ------------------------------------------------------------------ from PEFT


def length_of(adapter: Adapter) -> int:
  """P of a prompt or prefix.

  Raises:
    UserError: if the adapter does not say it.
  """
  return _count(adapter, "num_virtual_tokens", None)


def tasks_and_ranks(adapter: Adapter) -> tuple[int, int]:
  """How many tasks a multitask prompt has, and R."""
  return _count(adapter, "num_tasks", 1), _count(adapter, "num_ranks", 1)


def _lengths(adapter: Adapter, base: Base) -> tuple[int, int]:
  """P, and for how many halves of the model the table has rows."""
  config = adapter.config
  length = length_of(adapter)
  halves = config["num_transformer_submodules"]
  if halves is None:
    halves = 2 if base.is_encoder_decoder else 1
  if halves not in ((1, 2) if base.is_encoder_decoder else (1,)):
    base.refuse(adapter, f"has num_transformer_submodules {halves}")
  return length, halves


def _count(adapter: Adapter, name: str, default: int | None) -> int:
  value = adapter.config[name]
  value = default if value is None else value
  if type(value) is not int or value <= 0:
    raise errors.UserError(
        f"{adapter.path} has {name} {value!r}, which must be a positive whole "
        "number: copy the adapter again.")
  return value


def _tensor(
    adapter: Adapter, base: Base, name: str, shape: tuple[int, ...]
) -> np.ndarray:
  """One of the adapter's tensors in float32, of the shape it must have."""
  if name not in adapter.tensors:
    raise errors.UserError(
        f"{adapter.path} lacks the tensor {name}, which {adapter.type} has: "
        "copy the adapter again.")
  tensor = adapter.tensors[name]
  if tensor.shape != shape:
    base.refuse(adapter, f"has {name} {tensor.shape}, and {shape} is needed")
  return tensor.astype(np.float32)


def _refuse_others(adapter: Adapter) -> None:
  known = {TABLE}
  if adapter.type == "MULTITASK_PROMPT_TUNING":
    known |= {COLS, ROWS}
  if others := sorted(set(adapter.tensors) - known):
    raise errors.UserError(
        f"{adapter.path} holds {others[0]}, which {adapter.type} has not: "
        "copy the adapter again.")


def _multitask(adapter: Adapter, base: Base) -> dict[str, np.ndarray]:
  length, halves = _lengths(adapter, base)
  tasks, ranks = tasks_and_ranks(adapter)
  total, width = length * halves, base.embed_dim
  shared = _tensor(adapter, base, TABLE, (total, width))
  cols = _tensor(adapter, base, COLS, (tasks, total, ranks))
  rows = _tensor(adapter, base, ROWS, (tasks, ranks, width))
  flat = {}
  for half, path in enumerate((base.prompt_path, "decoder/prompt/prompt")):
    if half < halves:
      part = slice(half * length, (half + 1) * length)
      flat |= {f"{path}/prompt": shared[part], f"{path}/cols": cols[:, part],
               f"{path}/rows": rows}
  return flat


def _prefix(adapter: Adapter, base: Base) -> np.ndarray:
  length = length_of(adapter)
  heads = _count(adapter, "num_attention_heads", base.num_kv_heads)
  count = _count(adapter, "num_layers", base.num_layers)
  if (heads, count) != (base.num_kv_heads, base.num_layers):
    base.refuse(
        adapter, f"is a prefix of {count} layers and {heads} heads, and "
        f"{base.num_layers} and {base.num_kv_heads} are needed")
  width = 2 * heads * base.head_dim
  table = _tensor(adapter, base, TABLE, (length, count * width))
  if base.is_encoder_decoder:
    read = 2 * np.arange(base.num_decoder_layers) % count
    table = table.reshape(length, count, width)[:, read]
  return table.reshape(length, -1)


# -------------------------------------------------------------------- to PEFT


def _needed(flat: Mapping[str, np.ndarray], path: str) -> np.ndarray:
  if path not in flat:
    raise errors.UserError(
        f"There is no {path} among the parameters "
        f"({', '.join(sorted(flat)) or 'none of a prompt'}): fold an encoder "
        "into its table first (methods.folded, methods.prefix.fold).")
  return flat[path]


def _from_prompt(flat, base: Base):
  table = _needed(flat, f"{base.prompt_path}/prompt")
  length = len(table)
  if base.is_encoder_decoder:  # PEFT stores, and never uses, a second half
    table = np.concatenate([table, np.zeros_like(table)])
  return {TABLE: table}, {"num_virtual_tokens": length}


def _from_multitask(flat, base: Base):
  paths = [base.prompt_path]
  decoder = "decoder/prompt/prompt"
  if base.is_encoder_decoder and f"{decoder}/prompt" in flat:
    paths.append(decoder)
  rows = [_needed(flat, f"{path}/rows") for path in paths]
  if any(not np.array_equal(rows[0], other) for other in rows):
    raise errors.UserError(
        f"The rows of {' and '.join(paths)} differ, and PEFT has only one for "
        "both: give it the prompt of the encoder alone.")
  shared = [_needed(flat, f"{path}/prompt") for path in paths]
  cols = np.concatenate([_needed(flat, f"{path}/cols") for path in paths], 1)
  tensors = {TABLE: np.concatenate(shared), COLS: cols, ROWS: rows[0]}
  return tensors, {
      "num_virtual_tokens": len(shared[0]), "num_tasks": cols.shape[0],
      "num_ranks": cols.shape[2], "num_transformer_submodules": len(paths)}


def _from_prefix(flat, base: Base):
  table = _needed(flat, "decoder/prefix/prefix")
  if others := [path for path in flat if not path.startswith(
      "decoder/prefix/")]:
    raise errors.UserError(
        f"PEFT has a prefix of the decoder's self-attention alone, not "
        f"{others[0]}: use it here, or train one that it can have "
        "(prompts/prefix_peft.gin).")
  heads, width = base.num_kv_heads, base.head_dim
  if base.is_encoder_decoder:
    table = _as_peft_reads(table, base)
  return {TABLE: table}, {
      "num_virtual_tokens": len(table), "num_attention_heads": heads,
      "token_dim": heads * width}


def _as_peft_reads(table: np.ndarray, base: Base) -> np.ndarray:
  """The table of which PEFT's decoder reads this one; others stay 0."""
  ours = table.reshape(len(table), base.num_decoder_layers, -1)
  theirs = np.zeros((len(ours), base.num_layers, ours.shape[2]), np.float32)
  for i in range(base.num_decoder_layers):
    theirs[:, 2 * i % base.num_layers] = ours[:, i]
  read = 2 * np.arange(base.num_decoder_layers) % base.num_layers
  if not np.array_equal(theirs[:, read], ours):
    raise errors.UserError(
        "PEFT gives several layers of an encoder-decoder one prefix, and in "
        "this one they differ: use it here, or train one that PEFT can have "
        "(prompts/prefix_peft.gin).")
  return theirs.reshape(len(table), -1)
