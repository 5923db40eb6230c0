"""SuperGLUE (Wang et al. 2019b), under the original's names.

See `text_tasks` for `taskless_`, `task_index_` and `_examples`. WSC is a
generation task: the model writes the noun that a pronoun stands for, is
trained on right nouns alone and judged by whether it wrote the given one when
that is right. Definite pronoun resolution (DPR) has the same texts.
"""

import dataclasses
import functools
import re

from prompt_tuning import errors
from prompt_tuning.data import (
  glue,
  postprocessors,
  tasks,
  text_tasks,
  texts,
  tfds,
)
from prompt_tuning.metrics import accuracy, multiclass_f1, multirc, record

_VERSION = "1.0.2"
_YES_NO = ("False", "True")
_RTE = glue.Classification(
    "rte", ("hypothesis", "premise"), ("entailment", "not_entailment"))

CLASSIFICATIONS = {
    "boolq": glue.Classification("boolq", ("passage", "question"), _YES_NO),
    "cb": glue.Classification(
        "cb", ("hypothesis", "premise"),
        ("entailment", "contradiction", "neutral"),
        (functools.partial(multiclass_f1.multiclass_f1, num_classes=3),
         accuracy.accuracy)),
    "copa": glue.Classification(
        "copa", ("choice1", "choice2", "premise", "question"),
        ("choice1", "choice2")),
    "rte": _RTE,
    "wic": glue.Classification(
        "wic", ("sentence1", "sentence2", "word"), _YES_NO),
    "axb": dataclasses.replace(_RTE, metric_fns=(), splits=("test",)),
    "axg": dataclasses.replace(_RTE, metric_fns=(), splits=("test",)),
}

# The examples of training sets, by which the proportional mixtures draw.
_SIZES = {"boolq": 9427.0, "cb": 250.0, "copa": 400.0, "multirc": 27243.0,
          "record": 138854.0, "rte": 2490.0, "wic": 5428.0}

INDEXES = text_tasks.indexes(
    (*_SIZES, "wsc"), {"axb": "rte", "axg": "rte", "dpr": "wsc"})


def as_rte(row: texts.Row) -> texts.Row:
  """A row of the diagnostic set AX-b under the column names of RTE."""
  return {**row, "premise": row["sentence1"], "hypothesis": row["sentence2"]}


_BREAK = re.compile("<br>")
_BOLD = re.compile("</?b>")


def multirc_text(row: texts.Row) -> texts.Example:
  """A question, one answer to it and the paragraph, without HTML."""
  made = texts.classification(
      row, "multirc", ("question", "answer", "paragraph"), _YES_NO)
  return {
      "inputs": _BOLD.sub("", _BREAK.sub(" ", made["inputs"])),
      "targets": made["targets"],
      **{f"idx/{name}": row["idx"][name]
         for name in ("paragraph", "question", "answer")}}


_HIGHLIGHT_AFTER_STOP = re.compile(r"([.?!\"'])\n@highlight\n")


def record_text(row: texts.Row) -> texts.Example:
  """A query, the entities to choose from and the passage; no target yet."""
  passage = _HIGHLIGHT_AFTER_STOP.sub(r"\1 ", row["passage"])
  passage = passage.replace("\n@highlight\n", ". ")
  return {
      "inputs": f"record query: {row['query']} entities: "
                f"{', '.join(row['entities'])} passage: {passage}",
      "answers": row["answers"],
      "idx/passage": row["idx"]["passage"], "idx/query": row["idx"]["query"]}


def record_texts(row: texts.Row) -> list[texts.Example]:
  """An example for each right answer; metrics count a query once."""
  made = record_text(row)
  return [{**made, "targets": answer}
          for answer in row["answers"] or [texts.UNKNOWN]]


def wsc_text(row: texts.Row) -> texts.Example:
  """A sentence with the pronoun between stars; the noun is the target."""
  return {"inputs": f"wsc: {_marked(row)}", "targets": row["span1_text"],
          "label": row["label"], "idx": row["idx"]}


def _marked(row: texts.Row) -> str:
  words, pronoun = row["text"].split(" "), row["span2_text"]
  place = row["span2_index"]
  if words[place] == pronoun:
    words[place] = f"*{pronoun}*"
    return " ".join(words)
  if words[place].startswith(pronoun):
    # Punctuation is on the pronoun: T5 takes it off, with outer spaces.
    words[place] = f"*{pronoun}* {words[place].removeprefix(pronoun)}"
    return " ".join(words).strip()
  # One sentence of the data counts a word too few.
  places = [i for i, word in enumerate(words) if word == pronoun]
  if not places:
    raise errors.UserError(
        f"the row {row['idx']} of WSC has no word {pronoun!r}: "
        f"{row['text']!r}; correct span2_text or the text")
  words[min(places, key=lambda i: abs(i - place))] = f"*{pronoun}*"
  return " ".join(words)


def right_wsc_texts(row: texts.Row) -> list[texts.Example]:
  """For training: nothing for a noun that the pronoun does not stand for."""
  return [wsc_text(row)] if row["label"] == 1 else []


def dpr_text(row: texts.Row) -> texts.Example:
  """The first occurrence of the pronoun is the one in question."""
  pronoun = re.escape(row["pronoun"])
  text = re.sub(rf" ({pronoun})( |\.|,)", r" *\1*\2", row["sentence"], count=1)
  return {"inputs": f"wsc: {text}",
          "targets": row["candidates"][row["label"]]}


RECORD = {"steps": (texts.flat(record_texts),),
          "metric_fns": (record.record,),
          "postprocess_fn": postprocessors.record}

_OTHERS = {
    "multirc": {"steps": (texts.each(multirc_text),),
                "metric_fns": (multirc.multirc,),
                "postprocess_fn": postprocessors.multirc},
    "record": RECORD,
}


def settings_of(name: str) -> dict:
  """Steps, metrics and postprocessor of a task."""
  if name in _OTHERS:
    return _OTHERS[name]
  task = CLASSIFICATIONS[name]
  first = (texts.each(as_rte),) if name == "axb" else ()
  return {"steps": (*first, task.step), "metric_fns": task.metric_fns,
          "postprocess_fn": task.postprocess_fn}


def dataset(name: str, splits=None) -> tfds.Dataset:
  """A dataset of SuperGLUE with TFDS's splits, or others."""
  task = CLASSIFICATIONS.get(name, _RTE)
  return tfds.dataset(f"super_glue/{name}:{_VERSION}", splits or task.splits)


def _tasks() -> dict[str, tasks.Factory]:
  found = {}
  for name in (*CLASSIFICATIONS, *_OTHERS):
    found |= text_tasks.variants(
        f"super_glue_{name}_v102", INDEXES[name], dataset(name),
        text_fns=glue.shown(name, name in CLASSIFICATIONS),
        **settings_of(name))
  wsc = functools.partial(
      text_tasks.variants, index=INDEXES["wsc"])
  found |= wsc(
      "super_glue_wsc_v102_simple_train",
      dataset=dataset("wsc.fixed", ("train",)),
      steps=(texts.flat(right_wsc_texts),))
  found |= wsc(
      "super_glue_wsc_v102_simple_eval",
      dataset=dataset("wsc.fixed", ("validation", "test")),
      steps=(texts.each(wsc_text),), metric_fns=(accuracy.accuracy,),
      postprocess_fn=postprocessors.same_referent,
      text_fns=glue.shown("wsc", labels=False))
  found |= wsc(
      "dpr_v001_simple",
      dataset=tfds.dataset(
          "definite_pronoun_resolution:1.1.0", ("train", "test")),
      steps=(texts.each(dpr_text),), metric_fns=(accuracy.accuracy,),
      text_fns=glue.shown("dpr", labels=False))
  return found


TASKS = _tasks()


def _mixtures() -> dict[str, dict[str, float]]:
  wsc = "super_glue_wsc_v102_simple"
  found = {"super_glue_wsc_and_dev_v102_simple_examples": text_tasks.rates(
      f"{wsc}_train", f"{wsc}_eval_examples")}
  for prefix in ("taskless_", "task_index_"):
    for end in ("", "_examples"):
      found[f"{prefix}super_glue_wsc_and_dev_v102_simple{end}"] = (
          text_tasks.rates(*(
              f"{prefix}{wsc}_{part}{end}" for part in ("train", "eval"))))
  shares = {f"task_index_{wsc}_train": 259.0,
            f"task_index_{wsc}_eval_examples": 0.0} | {
      f"task_index_super_glue_{name}_v102_examples": size
      for name, size in _SIZES.items()}
  start, end = "task_index_super_glue", "v102_examples_proportional"
  found[f"{start}_{end}"] = shares
  found[f"{start}_with_dpr_{end}"] = {
      "task_index_dpr_v001_simple_examples": 1322.0, **shares}
  return found


MIXTURES = _mixtures()
