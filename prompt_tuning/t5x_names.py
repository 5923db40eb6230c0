"""T5X's names of settings that have another name here, or none.

Command lines that were written for `t5x.train` bind them; `command_line` asks
here first. What is left out here has a reason, which the user gets to read.
"""

import ast
import math

from prompt_tuning import errors

# A name of T5X, without its leading `t5x.` -> the name here.
_RENAMED = {
    "decoding.beam_search.alpha": "LENGTH_PENALTY",
    "decoding.temperature_sample.temperature": "TEMPERATURE",
    "decoding.temperature_sample.topk": "TOP_K",
    "decoding.temperature_sample.topp": "TOP_P",
    "models.EncoderDecoderModel.predict_batch_with_aux.num_decodes":
        "NUM_BEAMS",
    "partitioning.PjitPartitioner.model_parallel_submesh":
        "sharding.make_mesh.model",
    "partitioning.PjitPartitioner.num_partitions": "sharding.make_mesh.model",
    "seqio.SentencePieceVocabulary.sentencepiece_model_file":
        "VOCABULARY_FILE",
    "trainer.Trainer.num_microbatches": "NUM_MICROBATCHES",
}
_MOVED = {
    "utils.create_learning_rate_scheduler":
        "schedules.create_learning_rate_scheduler"}

_MESH = "devices are shared by sharding.make_mesh.data, .fsdp and .model"
_RESTORED = ("parameters that TRAINABLE_REGEX matches may be absent from the "
             "checkpoint, all others must be in it")
# What is left out here, and why nobody misses it.
_NEEDLESS = {
    "adafactor.Adafactor.logical_factor_rules":
        "it never had one on prompts, whose two dimensions are factored from "
        "128 up",
    "partitioning.PjitPartitioner.logical_axis_rules": _MESH,
    "partitioning.standard_logical_axis_rules.additional_rules": _MESH,
    "train.use_orbax": "prompts are always written as .npy, too",
    "train_script.train.use_orbax": "prompts are always written as .npy, too",
    "utils.RestoreCheckpointConfig.assignment_map": _RESTORED,
    "utils.RestoreCheckpointConfig.fallback_to_scratch": _RESTORED,
}
_ONE_BY_DEFAULT = ("num_partitions", "model_parallel_submesh",
                   "num_microbatches")


def needless(name: str, value: str) -> str | None:
  """Why a binding of T5X has nothing to set here; None if it has something.

  Args:
    name: as it was given on the command line.
    value: in gin's syntax.

  Raises:
    UserError: if it asks for what cannot be done here.
  """
  name = _canonical(name)
  if name.endswith("RestoreCheckpointConfig.assignment_map"):
    _check_assignment(value)
  if name in _RENAMED and name.endswith(_ONE_BY_DEFAULT) and value == "None":
    return "it is 1 unless it is given"
  return _NEEDLESS.get(name)


def translated(name: str, value: str) -> tuple[str, str]:
  """The name here and the value for it; itself if it is no name of T5X.

  Args:
    name: as it was given on the command line.
    value: in gin's syntax.
  """
  canonical = _canonical(name)
  if canonical.endswith("model_parallel_submesh"):
    value = str(_product(name, value))
  if canonical in _RENAMED:
    return _RENAMED[canonical], value
  module, _, parameter = canonical.rpartition(".")
  if module in _MOVED:
    return f"{_MOVED[module]}.{parameter}", value
  return name, value


def _canonical(name: str) -> str:
  """With T5X's module in front, which users leave out or write in full."""
  name = name.removeprefix("t5x.")
  if name.count(".") == 1:  # Class.parameter
    for known in (*_RENAMED, *_NEEDLESS):
      if known.endswith("." + name) and not known.startswith("seqio."):
        return known
  return name


def _product(name: str, submesh: str) -> int:
  """On how many devices a submesh (x, y, z, cores) has a layer."""
  sizes = _literal(submesh)
  if not (isinstance(sizes, (tuple, list)) and sizes
          and all(type(size) is int and size > 0 for size in sizes)):
    raise errors.UserError(
        f"--gin.{name}={submesh} is not a submesh such as (4, 4, 1, 2): give "
        "one, or sharding.make_mesh.model, the number of devices to split a "
        "layer over.")
  return math.prod(sizes)


def _check_assignment(value: str):
  """Skipping parameters is what is done anyway; renaming is not done."""
  rules = _literal(value)
  if not isinstance(rules, (tuple, list)) or any(
      not isinstance(rule, (tuple, list)) or len(rule) < 2
      or rule[1] is not None for rule in rules):
    raise errors.UserError(
        f"utils.RestoreCheckpointConfig.assignment_map={value} renames "
        "parameters, which only python -m prompt_tuning.scripts.convert and "
        ".recreate_checkpoint do: leave it out, or map to None what is not to "
        "be read.")


def _literal(value: str):
  try:
    return ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return None
