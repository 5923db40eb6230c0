"""seqio's tasks and mixtures as ours, and ours as seqio's.

This is the only importer of seqio, which runs its own sources, preprocessors
and tokenisers, once, when a split is tokenised for the cache. TensorFlow comes
with it, takes seconds to import and would reserve the accelerators' memory,
which it is kept from here.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import itertools
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from prompt_tuning import errors
from prompt_tuning.data import features, tasks, vocabularies

# Examples that the fingerprint of a split looks at, beside the code.
_SAMPLED = 32

# The vocabularies of published models, where T5 keeps them.
_T5_VOCABULARY = (
    "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model")
_MT5_VOCABULARY = (
    "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model")


def names() -> set[str]:
  """Every task and mixture that the imported modules have registered."""
  seqio = _seqio()
  return {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}


def get(name: str) -> tasks.Task | tasks.Mixture | None:
  """The registered task or mixture of a name; None if there is none.

  Raises:
    UserError: a vocabulary or a metric of a kind that is not supported.
  """
  seqio = _seqio()
  if name in seqio.TaskRegistry.names():
    return from_task(seqio.TaskRegistry.get(name))
  if name in seqio.MixtureRegistry.names():
    return from_mixture(seqio.MixtureRegistry.get(name))
  return None


def from_mixture(mixture: Any) -> tasks.Mixture:
  """Our mixture of a seqio one, rates of sub-mixtures worked out."""
  return tasks.Mixture(mixture.name, tuple(
      (from_task(task), float(mixture.get_rate(task)))
      for task in mixture.tasks))


def from_task(task: Any) -> tasks.Task:
  """Our task of a seqio one.

  Args:
    task: a `seqio.Task` whose output features are sequences of ids.

  Returns:
    A task that gives ids. Its examples are made without seqio's cutting to
    length, which `features.tokenize` does and counts; otherwise they are
    what seqio gives without shuffling, texts as `str`.

  Raises:
    UserError: a vocabulary or a metric of a kind that is not supported.
  """
  found = {name: feature for name, feature in task.output_features.items()
           if name in features.FEATURES}
  _check_metrics(task)
  return tasks.Task(
      name=task.name,
      examples=functools.partial(_examples, task),
      splits=_splits(task),
      metric_fns=tuple(task.predict_metric_fns),
      score_metric_fns=tuple(task.score_metric_fns),
      postprocess_fn=task.postprocess_fn if task.postprocessor else None,
      fingerprint=functools.partial(_fingerprint, task),
      feature_vocabularies={
          name: _vocabulary(task, feature) for name, feature in found.items()},
      without_eos=frozenset(
          name for name, feature in found.items() if not feature.add_eos))


def register(name: str, vocabulary: Any = None) -> None:
  """Adds one of our tasks or mixtures to seqio's registry, for T5X.

  Whatever seqio already has under a name stays.

  Args:
    name: of the task or mixture.
    vocabulary: seqio's, of inputs and targets; None: T5's, or that of mT5 or
      ByT5 if the name begins so.

  Raises:
    UserError: no task has that name.
  """
  seqio = _seqio()
  if name in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
    return
  found = tasks.get_task(name)
  if vocabulary is None:
    vocabulary = _default_vocabulary(name)
  if isinstance(found, tasks.Task):
    _register_task(found, vocabulary)
    return
  for task, _ in found.tasks:
    if task.name not in seqio.TaskRegistry.names():
      _register_task(task, vocabulary)
  seqio.MixtureRegistry.add(
      name, [(task.name, rate) for task, rate in found.tasks])


def _default_vocabulary(name: str):
  seqio = _seqio()
  if name.startswith("byt5_"):
    return seqio.ByteVocabulary()
  return seqio.SentencePieceVocabulary(
      _MT5_VOCABULARY if name.startswith("mt5_") else _T5_VOCABULARY)


def _register_task(task: tasks.Task, vocabulary: Any) -> None:
  seqio = _seqio()
  steps = [] if task.token_fn is None else [
      functools.partial(_make_of_ids, token_fn=task.token_fn)]
  metrics = [functools.partial(_metric, metric_fn=metric_fn)
             for metric_fn in task.metric_fns]
  metrics += [functools.partial(_shown, text_fn=text_fn)
              for text_fn in task.text_fns]
  seqio.TaskRegistry.add(
      task.name,
      source=seqio.FunctionDataSource(
          functools.partial(_dataset, task), splits=task.splits),
      preprocessors=[
          seqio.preprocessors.tokenize, *steps,
          seqio.preprocessors.append_eos_after_trim],
      output_features={
          feature: seqio.Feature(vocabulary, required=feature == "targets")
          for feature in features.FEATURES},
      postprocess_fn=functools.partial(_judged, task),
      metric_fns=[*metrics, *task.score_metric_fns])


def _dataset(task: tasks.Task, split: str, shuffle_files: bool, seed=None):
  """Texts, and the example whole as JSON, which metrics need."""
  del shuffle_files, seed
  import tensorflow as tf

  def rows():
    for example in task.examples(split):
      yield {**{name: example[name] for name in features.FEATURES},
             "example": json.dumps(example, default=features.jsonable)}

  text = tf.TensorSpec([], tf.string)
  return tf.data.Dataset.from_generator(rows, output_signature={
      name: text for name in (*features.FEATURES, "example")})


def _make_of_ids(dataset, sequence_length, output_features, token_fn):
  """A task's `token_fn` as a seqio preprocessor, behind `tokenize`."""
  import tensorflow as tf

  known = {name: feature.vocabulary
           for name, feature in output_features.items()}

  def made():
    for example in dataset.as_numpy_iterator():
      ids = {name: example[name] for name in features.FEATURES}
      for one in token_fn(ids, known, sequence_length):
        yield {**example, **one}

  return tf.data.Dataset.from_generator(
      made, output_signature=dataset.element_spec)


def _judged(task: tasks.Task, text: Any, example=None, is_target=False):
  """What `_metric` and `_shown` get: goals, and predictions with examples."""
  original = json.loads(example["example"])
  original["targets_length"] = len(example["targets"])
  made = tasks.postprocess(task, text, original, is_target)
  return made if is_target else tasks.Judged(
      original, original["targets"], text, None, made)


def _metric(targets, predictions, metric_fn):
  return metric_fn(targets, [one.guess for one in predictions])


def _shown(targets, predictions, text_fn):
  judged = [dataclasses.replace(one, goal=goal)
            for goal, one in zip(targets, predictions, strict=True)]
  return {name: _seqio().metrics.Text(text)
          for name, text in text_fn(judged).items()}


@functools.cache
def _seqio():
  import seqio
  import tensorflow as tf

  for kind in ("GPU", "TPU"):
    # Too late when the user's own code has already run TensorFlow.
    with contextlib.suppress(RuntimeError):
      tf.config.set_visible_devices([], kind)
  return seqio


def _splits(task) -> tuple[str, ...]:
  with _readable(f"the splits of the seqio task {task.name}"):
    return tuple(task.splits)


def _vocabulary(task, feature) -> vocabularies.Vocabulary:
  with _readable(f"the vocabulary of the seqio task {task.name}"):
    return vocabularies.from_seqio(feature.vocabulary)


def _check_metrics(task) -> None:
  """Refuses what needs more than texts and scores of our decoding."""
  if task.predict_with_aux_metric_fns:
    raise errors.UserError(
        f"the seqio task {task.name} has metrics of (targets, predictions, "
        "aux_values), which are not supported; use functions of (targets, "
        "predictions) or (targets, scores)")
  if len(task.metric_objs) > len(task.metric_fns):
    raise errors.UserError(
        f"the seqio task {task.name} has metric objects (metric_objs), which "
        "are not supported; give it metric_fns, functions of (targets, "
        "predictions) or (targets, scores)")


def _examples(task, split: str) -> Iterator[dict[str, Any]]:
  with _readable(f"the split {split!r} of the seqio task {task.name}"):
    dataset = task.get_dataset(
        sequence_length=None, split=split, shuffle=False, seed=0,
        trim_output_features=False)
    for example in dataset.as_numpy_iterator():
      yield {name: _plain(task, name, value)
             for name, value in example.items()}


def _plain(task, name: str, value: Any) -> Any:
  """Texts as `str`; inputs and targets must be one sequence of ids."""
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace")
  if name in features.FEATURES and not (
      isinstance(value, np.ndarray) and value.ndim == 1
      and np.issubdtype(value.dtype, np.integer)):
    raise errors.UserError(
        f"the seqio task {task.name} gives {name} of shape "
        f"{getattr(value, 'shape', '?')} and type "
        f"{getattr(value, 'dtype', type(value).__name__)} where a sequence of "
        "ids is needed; end its preprocessors with "
        "seqio.preprocessors.tokenize")
  return value


@contextlib.contextmanager
def _readable(what: str):
  """Missing files, hosts and datasets as one sentence."""
  import tensorflow as tf
  import tensorflow_datasets as tfds

  missing = (OSError, tf.errors.OpError,
             tfds.core.registered.DatasetNotFoundError)
  try:
    yield
  except missing as error:
    first_line = (str(error).strip() or type(error).__name__).split("\n")[0]
    raise errors.UserError(
        f"cannot read {what} ({first_line}); check its path, or that this "
        "machine is online") from error


def _fingerprint(task, split: str) -> str:
  """Of a split's origin, the code it goes through and its first examples.

  Nobody can tell what a preprocessor does without running it. An edit in a
  module that the task's own modules import, and that leaves the first
  examples as they were, goes unnoticed.
  """
  steps = [*task.preprocessors, getattr(task.source, "_dataset_fn", None)]
  facts = [
      task.name, split, importlib.metadata.version("seqio"),
      _origin(task.source, split), [_code(step) for step in steps if step]]
  digest = hashlib.sha256(json.dumps(facts).encode())
  for example in itertools.islice(_examples(task, split), _SAMPLED):
    digest.update(json.dumps(
        example, sort_keys=True, default=features.jsonable).encode())
  return digest.hexdigest()


def _origin(source, split: str) -> list[str]:
  """Where a source reads: a dataset's version, or files as they are now."""
  facts = [type(source).__name__]
  dataset = getattr(source, "tfds_dataset", None)
  if dataset is not None:
    facts.append(str(dataset.name))
  for path in source.list_shards(split):
    if os.path.isfile(path):
      status = os.stat(path)
      facts += [str(path), str(status.st_size), str(status.st_mtime_ns)]
    else:
      facts.append(str(path))
  return facts


def _code(function: Callable[..., Any]) -> list[str]:
  """A preprocessor's name, bound arguments and module's content."""
  facts = []
  while isinstance(function, functools.partial):
    bound = repr((function.args, sorted(function.keywords.items())))
    facts.append(re.sub(r" at 0x[0-9a-f]+", "", bound))
    function = function.func
  facts.append(getattr(function, "__qualname__", type(function).__name__))
  module = inspect.getmodule(function)
  path = getattr(module, "__file__", None)
  if path and os.path.isfile(path):
    content = pathlib.Path(path).read_bytes()
    facts.append(hashlib.sha256(content).hexdigest())
  return facts
