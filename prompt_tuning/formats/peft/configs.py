"""`adapter_config.json`: PEFT's fields of each type, and what is refused.

The fields are those of PEFT 0.21; types, meanings and values are its own. What
would make PEFT compute something else than we do, or run code, is refused here
by name rather than passed over.
"""

from collections.abc import Mapping
import json
import os
from typing import Any
import warnings

from prompt_tuning import checkpoints, errors

VERSION = "0.21.2"  # of PEFT, whose fields these are
PROMPTS = (
    "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING")
DELTAS = ("LORA", "IA3")
TASKS = (
    "CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS",
    "FEATURE_EXTRACTION")
_LARGEST = 4 << 20  # bytes; a list of every module of a large model fits

_COMMON = {
    "auto_mapping": None, "base_model_name_or_path": None,
    "inference_mode": True, "peft_type": None, "peft_version": VERSION,
    "revision": None, "task_type": None}
_PROMPT_LEARNING = _COMMON | {
    "modules_to_save": None, "num_attention_heads": None, "num_layers": None,
    "num_transformer_submodules": None, "num_virtual_tokens": None,
    "token_dim": None}
_PROMPT_TUNING = _PROMPT_LEARNING | {
    "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None,
    "tokenizer_kwargs": None, "tokenizer_name_or_path": None}
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "PROMPT_TUNING": _PROMPT_TUNING,
    "P_TUNING": _PROMPT_LEARNING | {
        "encoder_dropout": 0.0, "encoder_hidden_size": None,
        "encoder_num_layers": 2, "encoder_reparameterization_type": "MLP"},
    "PREFIX_TUNING": _PROMPT_LEARNING | {
        "encoder_hidden_size": None, "init_weights": None,
        "prefix_projection": False},
    "MULTITASK_PROMPT_TUNING": _PROMPT_TUNING | {
        "num_ranks": 1, "num_tasks": 1,
        "prompt_tuning_init_state_dict_path": None,
        "prompt_tuning_init_task": 0},
    "IA3": _COMMON | {
        "exclude_modules": None, "fan_in_fan_out": False,
        "feedforward_modules": None, "init_ia3_weights": True,
        "modules_to_save": None, "target_modules": None},
    "LORA": _COMMON | {
        "alora_invocation_tokens": None, "alpha_pattern": {},
        "arrow_config": None, "bias": "none", "corda_config": None,
        "ensure_weight_tying": False, "eva_config": None,
        "exclude_modules": None, "fan_in_fan_out": False,
        "init_lora_weights": True, "kasa_config": None,
        "layer_replication": None, "layers_pattern": None,
        "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 8,
        "lora_bias": False, "lora_dropout": 0.0, "lora_ga_config": None,
        "megatron_config": None, "megatron_core": "megatron.core",
        "modules_to_save": None, "monteclora_config": None,
        "qalora_group_size": 16, "r": 8, "rank_pattern": {},
        "target_modules": None, "target_parameters": None,
        "trainable_token_indices": None, "use_bdlora": None,
        "use_dora": False, "use_qalora": False, "use_rslora": False,
        "velora_config": None},
}
# What JSON may hold for fields that are used, besides null.
_KINDS = {
    "rank_pattern": (dict,), "alpha_pattern": (dict,),
    "lora_dropout": (int, float), "base_model_name_or_path": (str,),
    "tokenizer_name_or_path": (str,), "tokenizer_kwargs": (dict,),
    "num_virtual_tokens": (int,), "task_type": (str,)}
# Fields that, if set, make the adapter compute something else than ours does.
_ONLY_UNSET = {
    "LORA": (
        "alora_invocation_tokens", "arrow_config", "kasa_config",
        "layer_replication", "lora_bias", "modules_to_save",
        "monteclora_config", "target_parameters", "trainable_token_indices",
        "use_bdlora", "use_dora", "use_qalora", "velora_config"),
}
# The other initialisations (PiSSA, OLoRA, …) change the base's weights too.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


def check_kind(kind: Any, where: str) -> None:
  """Refuses types of adapters that we do not have, naming them.

  Raises:
    UserError: if `kind` is not one of `FIELDS`.
  """
  if not isinstance(kind, str) or kind not in FIELDS:
    raise errors.UserError(
        f"{where} has the PEFT type {kind!r}, which is not supported: "
        f"{', '.join(FIELDS)} are.")


def read(file: str) -> dict[str, Any]:
  """Reads and checks `adapter_config.json`.

  Args:
    file: its path.

  Returns:
    Every field of the adapter's type, missing ones with PEFT's default.
    Unknown ones are left out with a warning, as PEFT does.

  Raises:
    UserError: if it is damaged, of a type or with a setting that is not
      supported, or would make PEFT run code.
  """
  with checkpoints.reading(file), open(file, "rb") as stream:
    text = stream.read(_LARGEST + 1)
    if len(text) > _LARGEST:
      raise ValueError(f"it is larger than {_LARGEST} bytes")
    content = json.loads(text)
    if not isinstance(content, dict):
      raise ValueError("it is not a JSON object")
  kind = content.get("peft_type")
  check_kind(kind, file)
  # PEFT has this only at run time, and drops it without a word.
  content.pop("runtime_config", None)
  fields = FIELDS[kind]
  if unknown := sorted(set(content) - set(fields)):
    warnings.warn(
        f"{file} has settings that {kind} has not in PEFT {VERSION}, and that "
        f"are left out: {checkpoints.names(unknown, 10)}.", stacklevel=3)
  config = dict(fields) | {k: v for k, v in content.items() if k in fields}
  for name, kinds in _KINDS.items():
    if not isinstance(config.get(name), (*kinds, type(None))):
      raise errors.UserError(
          f"{file} has {name} {config[name]!r}"[:300] + ", which PEFT does not "
          "write: copy the adapter again.")
  _refuse_code(config, file)
  _refuse_other_functions(config, file)
  return config


def to_json(config: Mapping[str, Any]) -> bytes:
  """The text that PEFT writes."""
  return json.dumps(dict(config), indent=2, sort_keys=True).encode()


def of(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
  """A whole configuration from some of its fields.

  Raises:
    UserError: on a field that the type has not.
  """
  if unknown := sorted(set(fields) - set(FIELDS[kind])):
    raise errors.UserError(
        f"{kind} of PEFT has no {checkpoints.names(unknown)}: its fields are "
        f"{', '.join(FIELDS[kind])}.")
  return dict(FIELDS[kind]) | {"peft_type": kind} | dict(fields)


def _refuse_code(config: dict, file: str) -> None:
  """Refuses what asks for code that came with a model to be run.

  We would run none of it, but the adapter's next reader may.
  """
  mapping = config["auto_mapping"]
  if mapping is not None:
    library = mapping.get("parent_library") if isinstance(
        mapping, dict) else mapping
    # `transformers_modules` is where code from the Hub is put.
    if not str(library or "transformers").split(".")[0] == "transformers":
      raise errors.UserError(
          f"{file} names with auto_mapping a class of {library!r}, code that "
          "would be run to load it: remove auto_mapping if you trust the "
          "adapter.")
  options = config.get("tokenizer_kwargs") or {}
  if options.get("trust_remote_code"):
    raise errors.UserError(
        f"{file} has trust_remote_code in tokenizer_kwargs, which runs code "
        "that comes with the tokenizer: remove it, the tokenizer is not "
        "needed to load the adapter.")
  name = config.get("tokenizer_name_or_path")
  for folder in (os.path.dirname(file), ""):
    if name and _has_code(os.path.join(folder, name)):
      raise errors.UserError(
          f"{file} names the tokenizer {name!r} with tokenizer_name_or_path, "
          "a folder with code (auto_map) that would be run to load it: remove "
          "the name, the tokenizer is not needed to load the adapter.")


def _has_code(folder: str) -> bool:
  """Whether a tokenizer's folder asks for code of its own to be run."""
  try:
    with open(os.path.join(folder, "tokenizer_config.json"), "rb") as stream:
      return b'"auto_map"' in stream.read(_LARGEST)
  except (OSError, ValueError):
    return False


def _refuse_other_functions(config: dict, file: str) -> None:
  """Refuses settings under which our function is not the adapter's."""
  kind, task = config["peft_type"], config["task_type"]
  if task is not None and task not in TASKS:
    raise errors.UserError(
        f"{file} has the task_type {task!r}, which PEFT has not: its types are "
        f"{', '.join(TASKS)}.")
  wrong = [
      f"{name} {config[name]!r}"
      for name in _ONLY_UNSET.get(kind, ("modules_to_save",)) if config[name]]
  if kind == "LORA":
    if config["bias"] != "none":
      wrong.append(f"bias {config['bias']!r}")
    if config["init_lora_weights"] not in _INITIALISATIONS:
      wrong.append(f"init_lora_weights {config['init_lora_weights']!r}")
  if wrong:
    raise errors.UserError(
        f"{file} has {checkpoints.names(wrong)}, which {kind} here does not "
        "have: load it with PEFT, merge it (merge_and_unload) and save the "
        "whole model.")
