"""SuperGLUE's texts.

Short rows have what T5's preprocessors print written out; for the real rows
there is a digest of what t5 0.9.4's preprocessors printed for the rows that
TFDS 4.9.10 makes of the same files.
"""

import hashlib
import json

import pytest

from prompt_tuning.data import super_glue, tasks, text_tasks

NLI = {"premise": "P", "hypothesis": "H", "idx": 0}

TEXTS = [
    ("boolq", {"passage": "P", "question": "q", "label": 0, "idx": 0},
     "boolq passage: P question: q", "False"),
    ("cb", {**NLI, "label": 1}, "cb hypothesis: H premise: P",
     "contradiction"),
    ("copa", {"premise": "P", "choice1": "a", "choice2": "b",
              "question": "cause", "label": 1, "idx": 0},
     "copa choice1: a choice2: b premise: P question: cause", "choice2"),
    ("rte", {**NLI, "label": 1}, "rte hypothesis: H premise: P",
     "not_entailment"),
    ("axg", {**NLI, "label": 0}, "rte hypothesis: H premise: P",
     "entailment"),
    ("axb", {"sentence1": "P", "sentence2": "H", "label": 0, "idx": 0},
     "rte hypothesis: H premise: P", "entailment"),
    ("wic", {"sentence1": "A", "sentence2": "B", "word": "w", "start1": 1,
             "end1": 2, "start2": 3, "end2": 4, "label": 1, "idx": 0},
     "wic sentence1: A sentence2: B word: w", "True"),
    ("multirc", {"paragraph": "<b>Sent 1: </b>A.<br>B", "question": "Q",
                 "answer": "A", "label": 1,
                 "idx": {"paragraph": 0, "question": 1, "answer": 2}},
     "multirc question: Q answer: A paragraph: Sent 1: A. B", "True"),
    ("record", {"passage": "A.\n@highlight\nB\n@highlight\nC!\n@highlight\nD",
                "query": "@placeholder is", "entities": ["a", "b"],
                "answers": ["a"], "idx": {"passage": 0, "query": 1}},
     "record query: @placeholder is entities: a, b passage: A. B. C! D", "a"),
]


@pytest.mark.parametrize("name, row, inputs, target", TEXTS)
def test_texts(pair, name, row, inputs, target):
  assert pair(f"super_glue_{name}_v102_examples", row) == (inputs, target)
  bare = inputs.split(" ", 1)[1]
  for variant in ("taskless_", "task_index_"):
    for end in ("", "_examples"):
      assert pair(f"{variant}super_glue_{name}_v102{end}", row) == (
          bare, target)


def labelled(row, labels):
  label = row.get("label")
  return {**row, "label": labels.index(
      label if isinstance(label, str) else labels[int(label)])}


def multirc_rows(row):
  for question in row["passage"]["questions"]:
    for answer in question["answers"]:
      yield {"paragraph": row["passage"]["text"],
             "question": question["question"], "answer": answer["text"],
             "label": answer["label"], "idx": {
                 "paragraph": row["idx"], "question": question["idx"],
                 "answer": answer["idx"]}}


def record_rows(row):
  text = row["passage"]["text"]
  entities = sorted({
      text[one["start"]:one["end"] + 1] for one in row["passage"]["entities"]})
  for query in row["qas"]:
    yield {"passage": text, "query": query["query"], "entities": entities,
           "answers": sorted({one["text"] for one in query["answers"]}),
           "idx": {"passage": row["idx"], "query": query["idx"]}}


def with_spans_of_the_text(text, spans):
  """The config wsc.fixed: a span has the case that it has in the text."""
  fixed = dict(spans)
  for span in ("span1", "span2"):
    words = spans[f"{span}_text"].rstrip(".").replace("\n", " ")
    if words not in text:
      first = text.split()[spans[f"{span}_index"]][0]
      words = (words[0].lower() if first.islower() else words[0].upper()) + (
          words[1:])
    fixed[f"{span}_text"] = words
  return fixed


def rows_of(folder, name):
  """The rows of one task's file, in the form that TFDS gives them."""
  lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
  for row in map(json.loads, lines):
    if name == "multirc":
      yield from multirc_rows(row)
    elif name == "record":
      yield from record_rows(row)
    elif name == "wsc":
      yield {**row, **with_spans_of_the_text(row["text"], row["target"]),
             "label": int(row["label"])}
    else:
      yield labelled(row, super_glue.CLASSIFICATIONS[name].labels)


@pytest.mark.parametrize("name, folder, count, digest", [
    ("boolq", "BoolQ", 32, "b4be6257d696ea73"),
    ("cb", "CB", 32, "7094c6b81c51ce9a"),
    ("copa", "COPA", 32, "7ccbb3110bb06a8f"),
    ("multirc", "MultiRC", 154, "f990b7f24067b0ea"),
    ("record", "ReCoRD", 44, "73b642a73442c55b"),
    ("rte", "RTE", 32, "1e027bfedbf153e7"),
    ("wic", "WiC", 32, "721f1d94916c2933"),
    ("wsc", "WSC", 32, "a8a7e87bf7df6b95")])
def test_real_rows_give_t5s_texts(
    made, shared_data, name, folder, count, digest):
  rows = rows_of(shared_data / "superglue_32shot" / folder, name)
  end = "v102_simple_eval" if name == "wsc" else "v102"
  found = made(f"super_glue_{name}_{end}", *rows)
  texts = json.dumps([[one["inputs"], one["targets"]] for one in found])
  assert len(found) == count
  assert hashlib.sha256(texts.encode()).hexdigest()[:16] == digest


WSC = {"text": "Mitchell asked Tom if he could lend some money.",
       "span1_text": "Tom", "span2_text": "he", "span2_index": 4, "label": 1,
       "idx": 0}


def test_wsc_marks_the_pronoun(pair):
  text = "wsc: Mitchell asked Tom if *he* could lend some money."
  assert pair("super_glue_wsc_v102_simple_eval_examples", WSC) == (text, "Tom")
  assert pair("taskless_super_glue_wsc_v102_simple_train", WSC) == (
      text.removeprefix("wsc: "), "Tom")


@pytest.mark.parametrize("text, pronoun, index, marked", [
    # The two kinds of sentence that T5 has special cases for.
    ('Quite loud. "Good for him," he said. ', "him", 4,
     'Quite loud. "Good for *him* ," he said.'),
    ("Some day they might want to use it , but now", "it", 6,
     "Some day they might want to use *it* , but now")])
def test_wsc_where_the_index_or_the_word_is_off(
    pair, text, pronoun, index, marked):
  row = {**WSC, "text": text, "span2_text": pronoun, "span2_index": index}
  assert pair("super_glue_wsc_v102_simple_eval", row)[0] == f"wsc: {marked}"


def test_wsc_trains_on_right_nouns_alone(made):
  rows = [WSC, {**WSC, "label": 0}]
  assert len(made("task_index_super_glue_wsc_v102_simple_train", *rows)) == 1
  assert len(made("task_index_super_glue_wsc_v102_simple_eval", *rows)) == 2


def test_wsc_is_judged_by_whether_the_noun_was_written(made):
  task = tasks.get_task("taskless_super_glue_wsc_v102_simple_eval")
  examples = made(task.name, WSC, {**WSC, "label": 0})
  found = tasks.evaluate(task, examples, ["Tom"] * 2, ["the Tom", "Mitchell"])
  assert found == {"accuracy": 100.0}


def test_dpr_marks_the_first_pronoun(pair):
  row = {"sentence": "Bob asked Tom if he can lend some money, he said.",
         "pronoun": "he", "candidates": ["Bob", "Tom"], "label": 1}
  assert pair("taskless_dpr_v001_simple", row) == (
      "Bob asked Tom if *he* can lend some money, he said.", "Tom")


@pytest.mark.parametrize("prefix", ["taskless_", "task_index_"])
@pytest.mark.parametrize("end", ["", "_examples"])
def test_dpr_is_judged(prefix, end):
  # In the original, `_examples` cannot be called and `task_index_` has the
  # metrics of another task.
  task = tasks.get_task(f"{prefix}dpr_v001_simple{end}")
  found = tasks.evaluate(
      task, [{"inputs": "i"}] * 2, ["Bob", "Tom"], ["Bob", "Bob"])
  assert found["accuracy"] == 50.0
  assert {"f1", "em"}.isdisjoint(found)


def test_multirc_counts_questions_and_record_counts_queries(made):
  task = tasks.get_task("super_glue_multirc_v102")
  rows = [{"paragraph": "P", "question": "Q", "answer": str(i), "label": i % 2,
           "idx": {"paragraph": 0, "question": i // 2, "answer": i}}
          for i in range(4)]
  examples = made(task.name, *rows)
  found = tasks.evaluate(
      task, examples, ["False", "True"] * 2, ["False", "True", "True", "True"])
  assert found == {"f1": 80.0, "exact_match": 50.0}
  task = tasks.get_task("super_glue_record_v102")
  examples = made(task.name, {
      "passage": "P", "query": "Q", "entities": ["a", "b"],
      "answers": ["a", "b"], "idx": {"passage": 0, "query": 0}})
  assert [one["targets"] for one in examples] == ["a", "b"]
  found = tasks.evaluate(task, examples, ["a", "b"], ["b", "none"])
  assert found == {"em": 100.0, "f1": 100.0}


def test_record_without_answers_is_unknown(pair):
  assert pair("super_glue_record_v102", {
      "passage": "P", "query": "Q", "entities": ["a"], "answers": [],
      "idx": {"passage": 0, "query": 0}})[1] == "<unk>"


def test_indexes_and_rates():
  assert super_glue.INDEXES == {
      "boolq": 0, "cb": 1, "copa": 2, "multirc": 3, "record": 4, "rte": 5,
      "wic": 6, "wsc": 7, "axb": 5, "axg": 5, "dpr": 7}
  mixture = tasks.get_task(
      "task_index_super_glue_with_dpr_v102_examples_proportional")
  rates = {text_tasks.source_of(task).name + task.splits[0]: rate
           for task, rate in mixture.tasks}
  assert sum(rates.values()) == 1322 + 259 + 9427 + 250 + 400 + 27243 + (
      138854 + 2490 + 5428)
  assert rates["super_glue/wsc.fixed:1.0.2validation"] == 0.0
