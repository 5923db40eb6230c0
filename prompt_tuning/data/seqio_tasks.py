"""seqio's tasks and mixtures as ours; the only importer of seqio.

seqio runs its own sources, preprocessors and tokenisers, once, when a split
is tokenised for the cache. TensorFlow comes with it, takes seconds to import
and would reserve the accelerators' memory, which it is kept from here.
"""

from collections.abc import Callable, Iterator
import contextlib
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
