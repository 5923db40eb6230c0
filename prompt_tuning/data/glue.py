"""GLUE (Wang et al. 2019), under the original's names.

`glue_{task}_v002` is TFDS's version 1.0.0, `_v200` is 2.0.0; see `text_tasks`
for `taskless_`, `task_index_` and `_examples`. A zero-shot task of the
diagnostic set `ax` has a test split without labels, and no metric.
"""

import dataclasses
import functools

from prompt_tuning.data import postprocessors, tasks, text_tasks, texts, tfds
from prompt_tuning.metrics import (
  accuracy,
  f1,
  label_sets,
  matthews,
  pearson,
  samples,
  spearman,
)

VERSIONS = {"v002": "1.0.0", "v200": "2.0.0"}

_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_PAIR = ("sentence1", "sentence2")
_DEV = ("validation", "test")


@dataclasses.dataclass(frozen=True)
class Classification:
  """A task of choosing a label.

  Attributes:
    name: in front of the text.
    keys: the columns in the text.
    labels: texts of the classes.
    metric_fns: of class ids.
    splits: TFDS's.
  """

  name: str
  keys: tuple[str, ...]
  labels: tuple[str, ...]
  metric_fns: tuple[tasks.MetricFn, ...] = (accuracy.accuracy,)
  splits: tuple[str, ...] = ("train", *_DEV)

  @property
  def step(self) -> texts.Step:
    return texts.each(texts.classification, name=self.name, keys=self.keys,
                      labels=self.labels)

  @property
  def postprocess_fn(self):
    return functools.partial(postprocessors.class_id, labels=self.labels)


_MNLI = Classification("mnli", ("hypothesis", "premise"), _NLI)
_BOTH = (f1.f1, accuracy.accuracy)

CLASSIFICATIONS = {
    "cola": Classification(
        "cola", ("sentence",), ("unacceptable", "acceptable"),
        (matthews.matthews,)),
    "sst2": Classification("sst2", ("sentence",), ("negative", "positive")),
    "mrpc": Classification(
        "mrpc", _PAIR, ("not_equivalent", "equivalent"), _BOTH),
    "qqp": Classification(
        "qqp", ("question1", "question2"), ("not_duplicate", "duplicate"),
        _BOTH),
    "mnli": dataclasses.replace(_MNLI, splits=(
        "train", "validation_matched", "validation_mismatched",
        "test_matched", "test_mismatched")),
    "mnli_matched": dataclasses.replace(_MNLI, splits=_DEV),
    "mnli_mismatched": dataclasses.replace(_MNLI, splits=_DEV),
    "qnli": Classification("qnli", ("question", "sentence"), _ENTAILMENT),
    "rte": Classification("rte", _PAIR, _ENTAILMENT),
    "wnli": Classification("wnli", _PAIR, ("not_entailment", "entailment")),
    "ax": dataclasses.replace(_MNLI, metric_fns=(), splits=("test",)),
}

SIMILARITY = {
    "steps": (texts.each(texts.similarity),),
    "metric_fns": (pearson.pearson, spearman.spearman),
    "postprocess_fn": postprocessors.number}

# Nine tasks have an index, so a multi-task prompt of all needs nine.
INDEXES = text_tasks.indexes(
    ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"),
    {"ax": "mnli", "mnli_matched": "mnli", "mnli_mismatched": "mnli"})


def settings_of(name: str) -> dict:
  """Steps, metrics and postprocessor of a task."""
  if name == "stsb":
    return SIMILARITY
  task = CLASSIFICATIONS[name]
  return {"steps": (task.step,), "metric_fns": task.metric_fns,
          "postprocess_fn": task.postprocess_fn}


def dataset(name: str, version: str = "2.0.0", splits=None) -> tfds.Dataset:
  """A dataset of GLUE with TFDS's splits, or others."""
  task = CLASSIFICATIONS.get(name, CLASSIFICATIONS["sst2"])
  return tfds.dataset(f"glue/{name}:{version}", splits or task.splits)


def shown(title: str, labels: bool = True) -> tuple:
  """`text_fns` of a task: predictions, wrong ones, and the labels' shares."""
  found = (functools.partial(samples.samples, title=title),)
  return (*found, functools.partial(label_sets.label_sets, title=title)) if (
      labels) else found


def _tasks() -> dict[str, tasks.Factory]:
  found = {}
  for task_version, version in VERSIONS.items():
    for name in (*CLASSIFICATIONS, "stsb"):
      found |= text_tasks.variants(
          f"glue_{name}_{task_version}", INDEXES[name],
          dataset(name, version), text_fns=shown(name, name != "stsb"),
          **settings_of(name))
  return found


TASKS = _tasks()

MIXTURES = {
    f"{prefix}glue_mnli_and_dev_{version}_examples": text_tasks.rates(*(
        f"{prefix}glue_{name}_{version}_examples"
        for name in ("mnli", "mnli_mismatched", "mnli_matched")))
    for prefix in ("", "taskless_", "task_index_") for version in VERSIONS}
