"""CRUXEval's answers: the ground truth comes back, and decoding's slips."""

import json

import pytest

from prompt_tuning.execution import answers

PROMPT = "[PYTHON]\nassert f(??) == 3\n[/PYTHON]\n[ANSWER]\n"


@pytest.mark.parametrize("generated, expected", [
    ('assert f(["mq"]) == 3\n[/ANSWER]', 'f(["mq"])'),
    ("assert f(1) == 3 == 4", "f(1)"),
    ("f(1)", "f(1)"),
    ("assert f (1)", "f(1)"),
    ("  ", ""),
    ("nothing", "nothing")])
def test_input(generated, expected):
  assert answers.answer(PROMPT + generated, PROMPT, "input") == expected


@pytest.mark.parametrize("generated, expected", [
    ("assert f(1) == [2]\n[/ANSWER]\n", "[2]"),
    ("assert f(1) == 2 == 4", "2"),
    ("[2][/ANSWER] more", "[2]"),
    ("nothing", "nothing")])
def test_output(generated, expected):
  assert answers.answer(PROMPT + generated, PROMPT, "output") == expected


def test_what_follows_the_first_difference_is_generated():
  text = PROMPT[:-1] + " \nassert f(1) == 2"  # a space before the line feed

  assert answers.answer(text, PROMPT, "output") == "2"
  assert answers.answer(text, PROMPT, "input") == "f(1)"


@pytest.mark.parametrize("text", ["", PROMPT, PROMPT[:-5], "x"])
def test_a_text_no_longer_than_its_prompt_has_no_answer(text):
  assert answers.answer(text, PROMPT, "input") == ""


def test_ground_truth_comes_back(shared_data):
  rows = [json.loads(line) for line in
          (shared_data / "cruxeval" / "cruxeval.jsonl").open()]
  targets = [f"assert f({row['input']}) == {row['output']}\n[/ANSWER]\n"
             for row in rows]

  inputs = [answers.answer(PROMPT + text, PROMPT, "input") for text in targets]
  outputs = [
      answers.answer(PROMPT + text, PROMPT, "output") for text in targets]

  assert len(rows) == 800
  assert inputs == [f"f({row['input']})" for row in rows]
  assert outputs == [row["output"] for row in rows]
