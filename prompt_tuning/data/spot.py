"""The source tasks of SPoT (Vu et al. 2022), with the task's name in front."""

import functools

from prompt_tuning.data import glue, qa, tasks, text_tasks, texts, tfds
from prompt_tuning.metrics import accuracy, rouge

_MNLI = {
    "train": {"train": "train"},
    "validation_matched": {"validation": "validation_matched"},
    "validation_mismatched": {"validation": "validation_mismatched"},
}

_QA = ("squad", "news_qa", "trivia_qa", "search_qa", "hotpot_qa",
       "natural_questions")

_NLI = ("entailment", "neutral", "contradiction")
# name: (TFDS's name, the other text's column, labels)
_INFERENCE = {
    "anli_r1_v010": ("anli/r1:0.1.0", "context", _NLI),
    "anli_r2_v010": ("anli/r2:0.1.0", "context", _NLI),
    "anli_r3_v010": ("anli/r3:0.1.0", "context", _NLI),
    "doc_nli_v100": (
        "doc_nli:1.0.0", "premise", ("not_entailment", "entailment")),
    "snli_v110": ("snli:1.1.0", "premise", _NLI),
}

# name: (TFDS's name, column of the text, column of the summary)
_SUMMARIES = {
    "aeslc_v100": ("aeslc:1.0.0", "email_body", "subject_line"),
    "billsum_v300": ("billsum:3.0.0", "text", "summary"),
    "cnn_dailymail_v320": ("cnn_dailymail:3.2.0", "article", "highlights"),
    "gigaword_v120": ("gigaword:1.2.0", "document", "summary"),
    "multi_news_v100": ("multi_news:1.0.0", "document", "summary"),
    "newsroom_v100": ("newsroom:1.0.0", "text", "summary"),
    "samsum_v100": ("samsum:1.0.0", "dialogue", "summary"),
}


def inference_text(
    row: texts.Row, name: str, other: str, labels: tuple[str, ...]
) -> texts.Example:
  """"snli hypothesis: … premise: …"; labels may be digits as text."""
  return {
      "inputs": texts.one_spaced(
          f"{name} hypothesis: {row['hypothesis']} {other}: {row[other]}"),
      "targets": texts.label_text(int(row["label"]), labels)}


def _task_name(name: str) -> str:
  return name.rpartition("_")[0]


def _tasks() -> dict[str, tasks.Factory]:
  made = {}
  for name in ("cola", "sst2", "mrpc", "qqp", "stsb", "qnli", "rte", "wnli"):
    made[f"spot_glue_{name}_v200"] = (
        glue.dataset(name), glue.settings_of(name))
  for part, splits in _MNLI.items():
    made[f"spot_glue_mnli_{part}_v200"] = (
        glue.dataset("mnli", splits=splits), glue.settings_of("mnli"))
  for name in _QA:
    made[f"spot_mrqa_{name}_v100"] = (
        tfds.dataset(f"mrqa/{name}:1.0.0", ("train", "validation")),
        {"steps": (texts.each(qa.mrqa_text, name=name),), **qa.SETTINGS})
  for name, (dataset, other, labels) in _INFERENCE.items():
    made[f"spot_{name}"] = (tfds.dataset(dataset), {
        "steps": (texts.each(inference_text, name=_task_name(name),
                             other=other, labels=labels),),
        "metric_fns": (accuracy.accuracy,)})
  for name, (dataset, source, target) in _SUMMARIES.items():
    splits = ("train", "test", "ca_test") if name == "billsum_v300" else (
        "train", "validation", "test")
    made[f"spot_{name}"] = (tfds.dataset(dataset, splits), {
        "steps": (texts.each(
            texts.generation, source=source, target=target,
            prefix=f"{_task_name(name)} summarize:"),),
        "metric_fns": (rouge.rouge,)})
  return {
      name: functools.partial(text_tasks.make, name, dataset, **settings)
      for name, (dataset, settings) in made.items()}


TASKS = _tasks()

MIXTURES = {"spot_glue_mnli_and_dev_v200": text_tasks.rates(
    *(f"spot_glue_mnli_{part}_v200" for part in _MNLI))}
