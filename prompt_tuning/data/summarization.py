"""Summaries: XSum and CNN/Daily Mail."""

import functools

from prompt_tuning.data import text_tasks, texts, tfds
from prompt_tuning.metrics import rouge, samples

# name: (title, TFDS's name, column of the text, column of the summary)
_SETS = {
    "xsum_v110_examples": ("xsum", "xsum:1.1.0", "document", "summary"),
    "cnn_dailymail_v310_examples": (
        "cnn_dailymail", "cnn_dailymail:3.1.0", "article", "highlights"),
}

TASKS = {
    name: functools.partial(
        text_tasks.make, name, tfds.dataset(dataset),
        (texts.each(texts.generation, source=source, target=target),),
        metric_fns=(rouge.rouge,),
        text_fns=(functools.partial(
            samples.samples, title=title, wrong=False),))
    for name, (title, dataset, source, target) in _SETS.items()}

MIXTURES = {}
