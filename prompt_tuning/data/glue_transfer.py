"""Trained on one of two paraphrase tasks, judged on the other, zero-shot.

QQP's labels are "duplicate" and "not_duplicate", MRPC's "equivalent" and
"not_equivalent": what a model of the one predicts is put into the words of the
other before it is judged.
"""

import functools

from prompt_tuning.data import glue, postprocessors, tasks, text_tasks

# (what the model was trained on, what it is judged on)
_PAIRS = (("qqp", "mrpc"), ("mrpc", "qqp"))
_WORDS = {"qqp": "duplicate", "mrpc": "equivalent"}


def _tasks() -> dict[str, tasks.Factory]:
  found = {}
  for source, target in _PAIRS:
    settings = glue.settings_of(target)
    settings = {**settings, "postprocess_fn": functools.partial(
        postprocessors.translated, words=(_WORDS[source], _WORDS[target]),
        then=settings["postprocess_fn"])}
    found |= text_tasks.variants(
        f"glue_{target}_from_{source}_v002", glue.INDEXES[target],
        glue.dataset(target, "1.0.0", ("validation",)),
        text_fns=glue.shown(target), **settings)
  return found


TASKS = _tasks()

MIXTURES = {
    f"{prefix}glue_{target}_from_{source}_zeroshot_v002{end}":
        text_tasks.rates(
            f"{prefix}glue_{source}_v002",
            f"{prefix}glue_{target}_from_{source}_v002{end}")
    for prefix in ("", "taskless_", "task_index_") for end in ("", "_examples")
    for source, target in _PAIRS}
