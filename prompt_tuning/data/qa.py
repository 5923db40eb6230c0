"""Question answering: SQuAD, and MRQA 2019 (Fisch et al. 2019) beyond it.

The mixtures `squad_to_…` train on SQuAD and are judged on what is out of its
domain, of which MRQA has a test split only: it is called "validation" here.
"""

import functools

from prompt_tuning.data import postprocessors, tasks, text_tasks, texts, tfds
from prompt_tuning.metrics import samples, squad

OUT_OF_DOMAIN = ("bio_asq", "drop", "duo_rc", "race", "relation_extraction",
                 "textbook_qa")
IN_DOMAIN = ("news_qa", "trivia_qa", "search_qa", "hotpot_qa",
             "natural_questions")

_SQUAD = "squad_v010_allanswers_examples"

SETTINGS = {"metric_fns": (squad.squad,),
            "postprocess_fn": postprocessors.answers}


def squad_text(row: texts.Row) -> texts.Example:
  """SQuAD has its answers one level down."""
  made = texts.question(row, row["answers"]["text"])
  return {**made, "id": row["id"]}


def mrqa_text(row: texts.Row, name: str | None = None) -> texts.Example:
  """A row of any set of MRQA, with a task's name in front if there is one."""
  made = texts.question(row, row["answers"], name)
  return {**made, "idx": row["qid"], "answer": made["targets"]}


def _shown(title: str) -> tuple:
  return (functools.partial(
      samples.samples, title=title, show=samples.question),)


def _tasks() -> dict[str, tasks.Factory]:
  sets = {_SQUAD: ("squad", tfds.dataset(
      "squad/v1.1:3.0.0", ("train", "validation")), squad_text)}
  for names, splits in (
      (OUT_OF_DOMAIN, {"validation": "test"}),
      (IN_DOMAIN, ("train", "validation"))):
    for name in names:
      sets[f"mrqa_{name}_v100_examples"] = (
          name, tfds.dataset(f"mrqa/{name}:1.0.0", splits), mrqa_text)
  return {
      name: functools.partial(
          text_tasks.make, name, dataset, (texts.each(text),),
          text_fns=_shown(title), **SETTINGS)
      for name, (title, dataset, text) in sets.items()}


TASKS = _tasks()

MIXTURES = {
    f"squad_to_{name}_examples": text_tasks.rates(
        _SQUAD, f"mrqa_{name}_v100_examples")
    for name in OUT_OF_DOMAIN
} | {"squad_to_mrqa_examples": text_tasks.rates(
    _SQUAD, *(f"mrqa_{name}_v100_examples" for name in OUT_OF_DOMAIN))}
