"""Label words against each other: training by ranking, and what it is beside.

`X_perceptron_train` holds the end of the training set out for validation,
`X_perceptron_test` is the set's own validation split; both have `label_texts`,
so the prediction is the likeliest label word, and models that weigh labels
against each other can train on them. `X_generation_…` are the same
examples with decoded predictions, `X_rank_classification_…` their label words
scored one by one.
"""
import functools

from prompt_tuning.data import (
  glue,
  recycling,
  super_glue,
  tasks,
  text_tasks,
  texts,
)

# Held out of the training set.
_HELD_OUT = {
    "cola": 500, "sst2": 2000, "mrpc": 200, "qqp": 5000, "qnli": 3000,
    "rte": 200, "boolq": 400, "cb": 50, "copa": 50, "wic": 400}

_FAMILIES = (
    ("glue", "v200", glue, ("cola", "sst2", "mrpc", "qqp", "qnli", "rte")),
    ("super_glue", "v102", super_glue, ("boolq", "cb", "copa", "rte", "wic")))

_TEST = {"validation": "validation"}


def _of(group: str, version: str, family, name: str) -> dict:
  task = family.CLASSIFICATIONS[name]
  steps = (task.step, texts.without_first_word)
  train = recycling.held_out(_HELD_OUT[name])
  start = f"{group}_{name}_{version}"
  found = {}
  for kind, words, settings in (
      ("perceptron", ("Perceptron Validation", "Perceptron Test"),
       {"label_texts": task.labels}),
      ("generation", ("Generation Valid", "Generation Test"), {})):
    for part, splits, title in zip(("train", "test"), (train, _TEST), words):
      found[f"{start}_{kind}_{part}"] = (splits, steps, {
          "metric_fns": task.metric_fns,
          "postprocess_fn": task.postprocess_fn,
          "text_fns": glue.shown(f"{name} {title}"), **settings})
  ranked = (*steps, texts.among(task.labels))
  judged = recycling.ranking(len(task.labels))
  held = {"validation": train["validation"]}
  for part, splits in (("validation", held), ("test", _TEST)):
    found[f"{start}_rank_classification_{part}"] = (splits, ranked, judged)
  return {
      task_name: functools.partial(
          text_tasks.make, task_name, family.dataset(name, splits=splits),
          steps, **settings)
      for task_name, (splits, steps, settings) in found.items()}


def _tasks() -> dict[str, tasks.Factory]:
  found = {}
  for group, version, family, names in _FAMILIES:
    for name in names:
      found |= _of(group, version, family, name)
  return found


TASKS = _tasks()


def _mixtures() -> dict[str, dict[str, float]]:
  found = {}
  for group, version, _, names in _FAMILIES:
    for name in names:
      start = f"{group}_{name}_{version}"
      found[f"{start}_perceptron"] = text_tasks.rates(
          f"{start}_perceptron_train", f"{start}_perceptron_test")
      found[f"{start}_generation"] = text_tasks.rates(*(
          f"{start}_{part}" for part in (
              "rank_classification_validation", "rank_classification_test",
              "generation_train", "generation_test")))
  return found


MIXTURES = _mixtures()
