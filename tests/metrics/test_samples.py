"""Which predictions are shown."""

from prompt_tuning.data import tasks
from prompt_tuning.metrics import samples


def judged(goal, guess, number=0):
  return tasks.Judged({"inputs": f"input {number}"}, "right", "said", goal,
                      guess)


def test_one_prediction_whole():
  found = samples.samples([judged(1, 1)], "t")
  assert found == {
      "t samples":
          "example: input 0\n\ntarget: right\n\nprediction: said\n",
      "t negative samples": ""}


def test_eight_of_many_alike_every_time():
  many = [judged(1, i % 2, i) for i in range(50)]
  found = samples.samples(many, "t")
  assert found["t samples"].count("example:") == 8
  assert found["t negative samples"].count("example:") == 8
  numbers = {int(line.split()[-1]) for line in
             found["t negative samples"].splitlines() if "example" in line}
  assert len(numbers) == 8 and all(number % 2 == 0 for number in numbers)
  assert samples.samples(many, "t") == found
  assert set(samples.samples(many, "t", wrong=False)) == {"t samples"}


def test_wrong_by_answers_and_groups():
  found = samples.samples([
      judged(["a", "b"], "b"), judged(["a", "b"], "c"),
      judged({"value": 1, "group": 0}, {"value": 1}),
      judged({"value": ["a"], "group": 0}, {"value": "b"})], "t")
  assert found["t negative samples"].count("example:") == 2


def test_a_question_has_all_its_answers():
  example = {"inputs": "", "context": "C", "question": "Q",
             "answers": ["b", "a", "b"]}
  assert samples.question(tasks.Judged(example, "b", "x", None, "x")) == (
      "context: C\nquestion: Q\nanswers: a; b\nprediction: x")
