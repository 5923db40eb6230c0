"""Many prompts, models and recyclers, as one file describes them.

The file is the original's: JSON with

    root_dir            what everything is saved into
    dataset             names the folders and tables
    task_name           whose metric the tables show
    clobber             whether to make again what is there (default: false)
    steps               of the runs; null for all that are there
    combination_skips   [[source, target], …] that are left out
    load_embeddings     {"default": {"word_list_path", "num_words",
                        "word_offset"}, "from_string": {"vocab_file", "string"}}
    recycling_methods   {"jax-nn": {"__init__": {"hidden_scale"}, "fit":
                        {"batch_size", "learning_rate", "epochs"}},
                        "tf-lstsq": {}, "linear-combination": {}}
    pretrained          {model: checkpoint}
    prompts             {model: {init: {run: MODEL_DIR or a prompt's file}}}

Every prompt of every model goes to every other model by every method, into

    {root_dir}/{method}/{dataset}/{init}/{run}/recycled-prompt/
        recycled_from_{source}_at_{step}_to_{target}

with a card beside it. The prompts of the init "wayward" are close to a text, so
their maps are learned from the pieces of "from_string" (Khashabi et al. 2022).
Methods may have the names of `recycling.RECYCLERS`, too.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import glob
import hashlib
import itertools
import json
import os
import re
import shlex
from typing import Any

import numpy as np

from prompt_tuning import checkpoints, errors, formats
from prompt_tuning.checkpoints import base as base_lib
from prompt_tuning.data import vocabularies
from prompt_tuning.formats import card, prompt_file
from prompt_tuning.train import reporting
from prompt_tuning.transfer import recycling

_METHODS = {"jax-nn": "v2v-nn", "tf-lstsq": "v2v-lin",
            "linear-combination": "lin-comb"}
_REQUIRED = ("root_dir", "dataset", "task_name", "recycling_methods",
             "pretrained", "prompts")
WAYWARD = "wayward"

# ------------------------------------------------------------- what there is


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One prompt to carry over, and where it goes.

  Attributes:
    method: as the file names it.
    init: how its training started.
    run: of the same training with another seed.
    source: the name of the model that it was trained with.
    target: the name of the model that it is for.
    step: of its training.
    prompt_path: where it is.
    folder: `{root_dir}/{method}/{dataset}/{init}/{run}`.
  """

  method: str
  init: str
  run: str
  source: str
  target: str
  step: int
  prompt_path: str
  folder: str

  @property
  def name(self) -> str:
    return _as_file(
        f"recycled_from_{self.source}_at_{self.step}_to_{self.target}")

  @property
  def output_path(self) -> str:
    return os.path.join(self.folder, "recycled-prompt", self.name)

  @property
  def eval_dir(self) -> str:
    return os.path.join(self.folder, "eval", self.name)


def read_config(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the file, see the module.

  Raises:
    UserError: if it is not that, or a part refers to what is not there.
  """
  path = os.fspath(path)
  with checkpoints.reading(path):
    with open(path, encoding="utf-8") as file:
      config = json.load(file)
  if not isinstance(config, dict):
    raise errors.UserError(f"{path} is no JSON object: see the command's help.")
  for name in _REQUIRED:
    if not config.get(name):
      raise errors.UserError(f"{path} has no {name!r}: see the command's help.")
  for name in config["recycling_methods"]:
    if _METHODS.get(name, name) not in recycling.RECYCLERS:
      raise errors.UserError(
          f"{path} has the recycling method {name!r}: it can be "
          f"{', '.join((*_METHODS, *recycling.RECYCLERS))}.")
  for name in config["prompts"]:
    if name not in config["pretrained"]:
      raise errors.UserError(
          f"{path} has prompts of {name!r}, which is not in 'pretrained': add "
          "its checkpoint.")
  if any(WAYWARD in inits for inits in config["prompts"].values()) and (
      "from_string" not in config.get("load_embeddings", {})):
    raise errors.UserError(
        f"{path} has wayward prompts and no 'from_string' in "
        "'load_embeddings': give the vocabulary and the text that they are "
        "close to.")
  return config


def experiments(config: Mapping[str, Any]) -> Iterator[Experiment]:
  """All of them; those that share a map follow each other.

  Raises:
    UserError: if a run has no prompt.
  """
  skipped = set(map(tuple, config.get("combination_skips") or ()))
  for source, target in itertools.permutations(config["pretrained"], 2):
    inits = config["prompts"].get(source, {})
    if (source, target) in skipped:
      continue
    for method in config["recycling_methods"]:
      for init in sorted(inits, key=lambda name: name == WAYWARD):
        for run, path in inits[init].items():
          for step, prompt_path in _prompts(path, config.get("steps")):
            yield Experiment(
                method, init, run, source, target, step, prompt_path,
                os.path.join(config["root_dir"], *map(_as_file, (
                    method, config["dataset"], init, run))))


def _as_file(name: str) -> str:
  return name.replace(" ", "_")


def _prompts(path: str, steps) -> list[tuple[int, str]]:
  """(step, file) of a run's prompts, or of a prompt by itself."""
  folder = os.path.join(path, "numpy_checkpoints")
  if not os.path.isdir(folder):
    prompt_file.kind(path)  # or a sentence that there is nothing
    known = card.card_path(path)
    return [(card.read_card(known).step if os.path.isfile(known) else 0, path)]
  there = {int(found[1]) for name in os.listdir(folder)
           if (found := re.fullmatch(r"checkpoint_(\d+)", name))}
  found = []
  for step in sorted(there) if steps is None else steps:
    files = glob.glob(os.path.join(
        glob.escape(folder), f"checkpoint_{step}", "*.prompt"))
    if len(files) != 1:
      raise errors.UserError(
          f"{folder} has {len(files)} prompts of step {step}, not 1: give "
          f"other 'steps' (there are {sorted(there)}).")
    found.append((step, files[0]))
  return found


# ------------------------------------------------------------- doing all of it


@dataclasses.dataclass(frozen=True)
class _Model:
  """What is kept of a model."""

  path: str
  fingerprint: str
  support: np.ndarray  # [words, H]

  @property
  def name(self) -> str:
    return recycling.model_name(self.path)


def run(
    config: Mapping[str, Any], note: Callable[[str], None] = print
) -> list[dict[str, Any]]:
  """Recycles what is not there yet, and collects what was evaluated.

  A prompt that is there with the card that it would get is not made again, so
  an interrupted study goes on where it was.

  Args:
    config: from `read_config`.
    note: is told of each map that is learned.

  Returns:
    A record an experiment: method, init, run, source, target, step,
    `unexplained` (see `recycling.learn`), and the metrics of what was
    evaluated.

  Raises:
    UserError: if something is not there, or does not belong together.
  """
  models: dict[tuple, _Model] = {}
  maps: dict[tuple, tuple] = {}  # of the last pair of models alone
  records = []

  def model(name, wayward):
    if (name, wayward) not in models:
      models[name, wayward] = _read_model(config, name, wayward)
    return models[name, wayward]

  for one in experiments(config):
    wayward = one.init == WAYWARD
    source, target = model(one.source, wayward), model(one.target, wayward)
    settings = _settings(config, one, wayward)
    left = None if config.get("clobber") else _done(one, target, settings)
    if left is None:
      key = (one.source, one.target, one.method, wayward)
      if key not in maps:
        maps = {key: _learn(config, one, source, target)}
        note(f"{one.method}: {one.source} to {one.target}, "
             f"{maps[key][1]:.2%} of the variance left")
      carry, left = maps[key]
      _recycle(one, source, target, carry, settings | {"unexplained": left})
    records.append(_record(one, left, config["task_name"]))
  return records


def _read_model(config, name: str, wayward: bool) -> _Model:
  path = config["pretrained"][name]
  how = dict(config.get("load_embeddings", {}).get(
      "from_string" if wayward else "default", {}))
  table = base_lib.read_variable(
      path, how.get("variable_path", base_lib.EMBEDDING), np.float32)
  if wayward:
    vocabulary = vocabularies.SentencePieceVocabulary(how["vocab_file"])
    words = vocabulary.encode(how["string"])
    chosen = recycling.support(table, path, words, len(words), 0)
  else:
    words = how.get("word_list_path")
    words = recycling.read_words(words) if words else None
    chosen = recycling.support(
        table, path, words, how.get("num_words", 4000),
        how.get("word_offset", 1000))
  return _Model(path, card.fingerprint(table), chosen)


def _options(config, one: Experiment) -> dict[str, Any]:
  """The method's settings, of both of the original's groups."""
  groups = config["recycling_methods"][one.method]
  return {name: value for group in ("__init__", "fit")
          for name, value in groups.get(group, {}).items()}


def _settings(config, one: Experiment, wayward: bool) -> dict[str, Any]:
  """What decides how a recycled prompt comes out, for its card."""
  how = "from_string" if wayward else "default"
  prompt = prompt_file.read(one.prompt_path)
  return {
      "recycler": _METHODS.get(one.method, one.method),
      **_options(config, one),
      "embeddings": config.get("load_embeddings", {}).get(how, {}),
      "prompt_sha256": hashlib.sha256(prompt.tobytes()).hexdigest()}


def _done(one: Experiment, target: _Model, settings) -> float | None:
  """What an earlier run wrote of the map that it used; None if it is to do."""
  path = card.card_path(one.output_path)
  if not (os.path.isfile(path) and os.path.isfile(one.output_path)):
    return None
  known = card.read_card(path)
  same = known.base_fingerprint == target.fingerprint and all(
      known.settings.get(name) == value for name, value in settings.items())
  if not same:
    return None
  card.check(one.output_path, target.fingerprint, target.name)  # is it whole?
  return known.settings["unexplained"]


def _learn(config, one: Experiment, source: _Model, target: _Model):
  if len(source.support) != len(target.support):
    raise errors.UserError(
        f"{one.source} and {one.target} have {len(source.support):,} and "
        f"{len(target.support):,} words: recycling needs one vocabulary.")
  method = _METHODS.get(one.method, one.method)
  try:
    return recycling.learn(
        source.support, target.support, method, **_options(config, one))
  except TypeError as error:
    raise errors.UserError(
        f"The settings of the recycling method {one.method!r} are not all "
        f"known: {error}.") from error


def _recycle(one: Experiment, source, target, carry, settings) -> None:
  prompt = prompt_file.read(one.prompt_path)
  known = card.check(one.prompt_path, source.fingerprint, source.path)
  if prompt.shape[1] != source.support.shape[1]:
    raise errors.UserError(
        f"{one.prompt_path} has width {prompt.shape[1]} and {source.path} "
        f"{source.support.shape[1]}: name the model that it was trained with.")
  try:
    os.makedirs(os.path.dirname(one.output_path), exist_ok=True)
  except OSError as error:
    raise errors.UserError(
        f"cannot make {os.path.dirname(one.output_path)!r}: "
        f"{formats.why_not_written(error)}") from error
  recycling.write(
      one.output_path, carry(prompt), one.prompt_path, known, source.name,
      target.name, target.fingerprint, settings)


# ------------------------------------------------------------------ its results


def _record(one: Experiment, left: float, task: str) -> dict[str, Any]:
  record = {name: getattr(one, name) for name in (
      "method", "init", "run", "source", "target", "step")}
  record["unexplained"] = left
  for name, points in reporting.metric_series(one.eval_dir).items():
    if name.startswith(f"{task} "):
      record[name.removeprefix(f"{task} ")] = points[-1][1]
  return record


def write_tables(config: Mapping[str, Any], records) -> list[str]:
  """Writes the original's files into root_dir.

    recycling-{dataset}.tsv   the accuracy of each recycled prompt, evaluated
    training-{dataset}.tsv    the accuracies that the runs logged themselves
    cli_args-{dataset}.txt    the flags of each evaluation, a line each

  Returns:
    The paths.
  """
  root, dataset = config["root_dir"], config["dataset"]
  recycled = [
      (r["method"], r["init"], r["run"], r["source"], r["target"], r["step"],
       r["accuracy"]) for r in records if "accuracy" in r]
  training = [
      (model, init, run, step, value)
      for model, inits in config["prompts"].items()
      for init, runs in inits.items() for run, path in runs.items()
      for step, value in reporting.metric_series(path).get(
          f"{config['task_name']} accuracy", [])
      if config.get("steps") is None or step in config["steps"]]
  contents = {
      f"recycling-{dataset}.tsv": _tsv(
          ("Recycler", "Init", "Run", "Source Model", "Target Model", "Step",
           "Acc"), recycled),
      f"training-{dataset}.tsv": _tsv(
          ("Model", "Init", "Run", "Step", "Acc"), training),
      f"cli_args-{dataset}.txt": "".join(
          shlex.join(flags) + "\n" for flags in eval_flags(config))}
  for name, text in contents.items():
    formats.write_whole(os.path.join(root, name), text.encode())
  return [os.path.join(root, name) for name in contents]


def eval_flags(config: Mapping[str, Any]) -> Iterator[list[str]]:
  """What `prompt_tuning.eval` needs for each recycled prompt.

  Besides a models/ file, runs/prompt_eval.gin and TASK_FEATURE_LENGTHS.
  """
  for one in experiments(config):
    yield [f"--gin.{name}={value!r}" for name, value in (
        ("CHECKPOINT_PATH", config["pretrained"][one.target]),
        ("PROMPT_FILE", one.output_path),
        ("MIXTURE_OR_TASK_NAME", config["task_name"]),
        ("EVAL_OUTPUT_DIR", one.eval_dir))]


def _tsv(header, rows) -> str:
  return "".join(
      "\t".join(map(str, row)) + "\n" for row in (header, *rows))
