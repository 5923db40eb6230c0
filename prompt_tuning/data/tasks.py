"""What a task is, and where a name in a gin file finds one.

A task gives examples with `inputs` and `targets`; tokenising, padding and
batching are done elsewhere, so a task fits every model. Names are looked up in
the registry below first, then in the families of published tasks, then among
seqio's tasks and mixtures.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import difflib
import importlib
from typing import Any

from prompt_tuning import errors
from prompt_tuning.data import vocabularies

# An example has at least `inputs` and `targets`, each a text or a list of
# ids; other keys are kept for `postprocess_fn`.
Example = Mapping[str, Any]

# Called as metric_fn(targets, predictions), or, for `score_metric_fns`,
# metric_fn(targets, scores); returns named values.
MetricFn = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Judged:
  """A predicted example, as those see it who show predictions.

  Attributes:
    example: as the task gave it.
    target: the right text.
    output: the predicted text.
    goal: what the metrics compare with.
    guess: what the metrics compare.
  """

  example: Example
  target: str
  output: str
  goal: Any
  guess: Any


@dataclasses.dataclass(frozen=True)
class Task:
  """Examples and how their predictions are judged.

  Attributes:
    name: for logs and file names.
    examples: split name to an iterator of examples, in a fixed order.
    splits: the names that `examples` takes.
    metric_fns: functions of targets and predicted texts.
    postprocess_fn: text to what the metrics compare, called as seqio does:
      `postprocess_fn(text, example=..., is_target=...)`. None keeps texts.
    fingerprint: changes whenever the examples do; tokenised examples are
      cached under it. A function of the split where finding out takes time.
      Empty: never cached.
    score_metric_fns: functions of targets and log-likelihoods.
    feature_vocabularies: of the features that come as ids, by feature name.
    without_eos: features that must not end in an end-of-sequence.
    label_texts: all texts that targets can be. If given, the prediction is
      the likeliest of them; None: whatever the model decodes.
    text_fns: functions of predicted examples that show some of them, as named
      texts; they are logged beside the metrics.
    token_fn: makes further examples of an example's ids, called as
      `token_fn(ids, vocabularies, lengths)` with the ids, vocabulary and
      length of each feature; ends of sequences are added behind it.
    stops: texts that end an answer; what is generated is cut before the first.
    input_end: text that a decoder-only model reads behind the inputs. Inputs
      that are too long lose their end in front of it, not their start.
    prediction_files: makes files for a benchmark's own programs, as
      `prediction_files(examples, texts)` with a list of texts for each of the
      examples: contents by file name, which may be in a folder.
  """

  name: str
  examples: Callable[[str], Iterator[Example]]
  splits: tuple[str, ...]
  metric_fns: tuple[MetricFn, ...] = ()
  postprocess_fn: Callable[..., Any] | None = None
  fingerprint: str | Callable[[str], str] = ""
  score_metric_fns: tuple[MetricFn, ...] = ()
  feature_vocabularies: Mapping[str, vocabularies.Vocabulary] = (
      dataclasses.field(default_factory=dict))
  without_eos: frozenset[str] = frozenset()
  label_texts: tuple[str, ...] | None = None
  text_fns: tuple[
      Callable[[Sequence[Judged]], Mapping[str, str]], ...] = ()
  token_fn: Callable[..., Iterator[Mapping[str, Sequence[int]]]] | None = None
  stops: tuple[str, ...] = ()
  input_end: str | None = None
  prediction_files: Callable[
      [Sequence[Example], Sequence[Sequence[str]]], Mapping[str, str]
  ] | None = None


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Tasks that train together; each is evaluated by itself.

  Attributes:
    name: for logs.
    tasks: (task, rate) pairs; an example comes from a task with probability
      proportional to its rate. Rate 0: evaluated only.
  """

  name: str
  tasks: tuple[tuple[Task, float], ...]


Factory = Callable[[], Task | Mixture]

_registry: dict[str, str | Factory] = {
    "docstring_package": "prompt_tuning.data.docstrings:docstring_package",
    "docstring_summary": "prompt_tuning.data.docstrings:docstring_summary",
    "docstring_span_corruption":
        "prompt_tuning.data.pretraining:docstring_span_corruption",
    "docstring_language_model":
        "prompt_tuning.data.pretraining:docstring_language_model",
    **{name: f"prompt_tuning.data.code_tasks:{name}" for name in (
        "mbpp", "cruxeval_input_prediction", "cruxeval_output_prediction")},
    **{name: f"prompt_tuning.data.table_tasks:{name}" for name in (
        "nlg_e2e", "nlg_webnlg", "nlg_dart")},
    "source_target": "prompt_tuning.data.source_target:source_target",
}

# Modules of published tasks. Each has the tables TASKS (name to factory) and
# MIXTURES (name to rates by task name), and imports nothing heavy.
_FAMILIES = (
    "glue", "super_glue", "glue_transfer", "qa", "summarization", "spot",
    "recycling", "perceptron", "c4")

# The original registers its tasks again under these, for the vocabularies of
# other models. Here a task fits every model.
_PREFIXES = ("mt5_", "byt5_")


def register(name: str, factory: str | Factory) -> None:
  """Gives a name to a task; nothing is imported before the name is asked for.

  Args:
    name: as written in gin, `MIXTURE_OR_TASK_NAME`.
    factory: a function without arguments, or "module:function".
  """
  _registry[name] = factory


def get_task(name_or_task: str | Task | Mixture) -> Task | Mixture:
  """The task or mixture of a name; tasks and mixtures pass through.

  Raises:
    UserError: no task has that name; the nearest names are in the message.
  """
  if isinstance(name_or_task, (Task, Mixture)):
    return name_or_task
  if not isinstance(name_or_task, str):
    raise errors.UserError(
        f"{name_or_task!r} is not a task: give a task's name or a "
        "configurable that makes one, such as @files.FileTask()")
  factory = _registry.get(name_or_task)
  if isinstance(factory, str):
    module, function = factory.split(":")
    factory = getattr(importlib.import_module(module), function)
  if factory is not None:
    return factory()
  return _published(name_or_task) or _seqio_task(name_or_task)


def families() -> dict[str, Any]:
  """The modules of published tasks by name."""
  return {name: importlib.import_module(f"prompt_tuning.data.{name}")
          for name in _FAMILIES}


def registered() -> tuple[str, ...]:
  """Names that were registered one by one, outside of the families."""
  return tuple(_registry)


def _published(name: str) -> Task | Mixture | None:
  prefix = next((p for p in _PREFIXES if name.startswith(p)), "")
  plain = name.removeprefix(prefix)
  for family in families().values():
    if plain in family.TASKS:
      return dataclasses.replace(family.TASKS[plain](), name=name)
    if plain in family.MIXTURES:
      return Mixture(name, tuple(
          (get_task(prefix + member), rate)
          for member, rate in family.MIXTURES[plain].items()))
  return None


def _seqio_task(name: str) -> Task | Mixture:
  known = set(_registry)
  for family in families().values():
    known |= {*family.TASKS, *family.MIXTURES}
  try:
    from prompt_tuning.data import seqio_tasks

    found = seqio_tasks.get(name)
    if found is not None:
      return found
    known |= seqio_tasks.names()
    where = ""
  except ModuleNotFoundError as error:
    if error.name != "seqio":
      raise
    where = " (seqio is not installed, so its tasks are unknown here)"
  near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
  hint = f"did you mean {' or '.join(near)}?" if near else (
      f"known are {', '.join(sorted(known)[:20])}")
  raise errors.UserError(
      f"there is no task named {name!r}{where}: {hint}; a task of your own "
      "is found once a gin file imports its module")


def evaluate(
    task: Task,
    examples: Sequence[Example],
    targets: Sequence[Any],
    predictions: Sequence[Any] | None = None,
    scores: Sequence[float] | None = None,
) -> dict[str, Any]:
  """Judges predictions, scores or both by the task's metrics.

  Args:
    task: gives postprocessing and metrics.
    examples: N examples as the task gave them.
    targets: N target texts.
    predictions: N predicted texts; None skips `metric_fns`.
    scores: N log-likelihoods of the targets; None skips `score_metric_fns`.

  Returns:
    The values of all metrics, and the texts of `text_fns`, in one dict.

  Raises:
    UserError: two metrics use one name for different values.
  """
  goals = [postprocess(task, *pair, True) for pair in zip(
      targets, examples, strict=True)]
  results = []
  if predictions is not None:
    guesses = [postprocess(task, *pair, False) for pair in zip(
        predictions, examples, strict=True)]
    results += [metric(goals, guesses) for metric in task.metric_fns]
    judged = [Judged(*one) for one in zip(
        examples, targets, predictions, goals, guesses, strict=True)]
    results += [show(judged) for show in task.text_fns]
  if scores is not None:
    results += [metric(goals, scores) for metric in task.score_metric_fns]
  merged = {}
  for result in results:
    twice = merged.keys() & result.keys()
    if twice:
      raise errors.UserError(
          f"two metrics of the task {task.name} are both named "
          f"{', '.join(sorted(twice))}; rename one of them")
    merged.update(result)
  return merged


def postprocess(task: Task, text: Any, example: Example, is_target: bool):
  """What a metric compares: the text, or what the task makes of it."""
  if task.postprocess_fn is None:
    return text
  return task.postprocess_fn(text, example=example, is_target=is_target)
