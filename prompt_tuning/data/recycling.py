"""The tasks of prompt recycling (Lester et al. 2022), whose names begin `pr:`.

They train on all but the end of a training set, which is their validation
split, and are tested on the set's own validation or test split: as decoded
(`_test`) and by ranking all label words (`_rc`; `_rc_normed` per token).
"""

import dataclasses
import functools

from prompt_tuning.data import (
  glue,
  postprocessors,
  super_glue,
  tasks,
  text_tasks,
  texts,
  tfds,
)
from prompt_tuning.metrics import accuracy, rank_classification

# What the names call them, and the words.
_IMDB = {"0_1": ("0", "1"), "negative_positive": ("negative", "positive")}
_QQP = {
    "not_duplicate_duplicate": ("not_duplicate", "duplicate"),
    "0_1": ("0", "1"),
    "unique_duplicate": ("unique", "duplicate"),
    "not_spc_duplicate_duplicate": ("not duplicate", "duplicate"),
}

_DEV = {"validation": "validation"}


def held_out(count: int) -> dict[str, str]:
  """Splits that keep the last examples of a training set for validation."""
  return {"train": f"train[:-{count}]", "validation": f"train[-{count}:]"}


def review_text(row: texts.Row, labels: tuple[str, ...]) -> texts.Example:
  """The text of a review as it is."""
  return {"inputs": row["text"],
          "targets": "UNK" if row["label"] == -1 else labels[row["label"]]}


def record_text(row: texts.Row) -> texts.Example:
  """One example a query, which keeps its entities."""
  return {**super_glue.record_text(row), "entities": row["entities"]}


def ranking(num_classes: int | None, by_length=(False,)) -> dict:
  """Settings of a task whose candidates are ranked.

  Args:
    num_classes: how many candidates there are; None: it differs.
    by_length: False for sums of log-likelihoods, True for means a token,
      whose metrics begin "normed_" if there are both.
  """
  metrics = [functools.partial(
      rank_classification.rank_classification, num_classes=num_classes,
      by_length=normed, prefix="normed_" if normed and len(by_length) > 1
      else "") for normed in by_length]
  return {"score_metric_fns": tuple(metrics),
          "postprocess_fn": postprocessors.ranking}


def _imdb() -> dict:
  made = {}
  for name, labels in _IMDB.items():
    step = texts.each(review_text, labels=labels)
    settings = {"metric_fns": (accuracy.accuracy,),
                "postprocess_fn": functools.partial(
                    postprocessors.class_id, labels=labels)}
    by_length = (False, True) if name == "0_1" else (False,)
    for part, splits, steps, judged in (
        ("train", held_out(1000), (step,), settings),
        ("test", {"validation": "test"}, (step,), settings),
        ("test_rc", {"validation": "test"}, (step, texts.among(labels)),
         ranking(2, by_length))):
      made[f"pr:imdb_v100_{name}_verbalizers_{part}"] = (
          tfds.dataset("imdb_reviews/plain_text:1.0.0", splits), steps, judged)
  return made


def _sst2() -> dict:
  task = glue.CLASSIFICATIONS["sst2"]
  bare = (task.step, texts.without_first_word)
  settings = {"metric_fns": task.metric_fns,
              "postprocess_fn": task.postprocess_fn}
  parts = (("train", held_out(1000), bare, settings),
           ("test", _DEV, bare, settings),
           ("test_rc", _DEV, (*bare, texts.among(task.labels)), ranking(2)))
  return {f"pr:glue_sst2_v200_{part}": (
      glue.dataset("sst2", splits=splits), steps, judged)
          for part, splits, steps, judged in parts}


def _qqp() -> dict:
  made = {}
  for name, labels in _QQP.items():
    task = dataclasses.replace(glue.CLASSIFICATIONS["qqp"], labels=labels)
    bare = (task.step, texts.without_first_word)
    settings = {"metric_fns": task.metric_fns,
                "postprocess_fn": task.postprocess_fn}
    by_rank = (*bare, texts.among(labels))
    for part, splits, steps, judged in (
        ("training", held_out(10000), bare, settings),
        ("test", _DEV, bare, settings),
        ("rc", _DEV, by_rank, ranking(2)),
        ("rc_normed", _DEV, by_rank, ranking(2, (True,)))):
      made[f"pr:glue_qqp_v200_{name}_verbalizers_{part}"] = (
          glue.dataset("qqp", splits=splits), steps, judged)
  return made


def _record() -> dict:
  settings = dict(super_glue.RECORD)
  bare = (*settings.pop("steps"), texts.without_first_word)
  ranked = texts.ranked(
      lambda example: (example["entities"], example["answers"]))
  by_rank = (texts.each(record_text), texts.without_first_word, ranked)
  parts = (("training", held_out(10000), bare, settings),
           ("test", _DEV, bare, settings),
           ("rc", _DEV, by_rank, ranking(None, (False, True))))
  return {f"pr:super_glue_record_v102_{part}": (
      super_glue.dataset("record", splits), steps, judged)
          for part, splits, steps, judged in parts}


_MADE = _imdb() | _sst2() | _qqp() | _record()

TASKS: dict[str, tasks.Factory] = {
    name: functools.partial(text_tasks.make, name, dataset, steps, **settings)
    for name, (dataset, steps, settings) in _MADE.items()}


def _mixtures() -> dict[str, dict[str, float]]:
  groups = {
      **{f"pr:imdb_v100_{name}_verbalizers": ("train", "test", "test_rc")
         for name in _IMDB},
      "pr:glue_sst2_v200": ("train", "test", "test_rc"),
      **{f"pr:glue_qqp_v200_{name}_verbalizers":
         ("training", "test", "rc", "rc_normed") for name in _QQP},
      "pr:super_glue_record_v102": ("training", "test", "rc")}
  found = {}
  for name, parts in groups.items():
    members = [f"{name}_{part}" for part in parts]
    found[name] = text_tasks.rates(*members)
    found[f"{name}_eval"] = text_tasks.rates(*members[1:])
  return found


MIXTURES = _mixtures()
