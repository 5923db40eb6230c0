"""SQuAD and MRQA; expectations are what T5's preprocessors print."""

from prompt_tuning.data import tasks, text_tasks

CONTEXT = "question: What is it ? context: It ' s 5 % . "


def test_squad(made):
  (found,) = made("squad_v010_allanswers_examples", {
      "id": "7", "question": "What is it?", "context": "It's  5%.\n",
      "answers": {"text": ["5%", "five"]}})
  assert found == {
      "inputs": CONTEXT, "targets": "5 % ", "id": "7",
      "question": "What is it ? ", "context": "It ' s 5 % . ",
      "answers": ["5 % ", "five"]}


def test_mrqa_with_and_without_a_name(made):
  row = {"qid": "q", "question": "What is it?", "context": "It's 5%.",
         "answers": ["5%"]}
  (found,) = made("mrqa_race_v100_examples", row)
  assert (found["inputs"], found["targets"]) == (CONTEXT, "5 % ")
  assert found["idx"] == "q"
  (named,) = made("spot_mrqa_news_qa_v100", row)
  assert named["inputs"] == f"news_qa {CONTEXT}"


def test_only_ascii_punctuation_and_white_space_change(pair):
  row = {"qid": "q", "question": "a\u00a0b_c", "context": "€5—\u2003[x]^`~",
         "answers": ["no"]}
  assert pair("mrqa_drop_v100_examples", row)[0] == (
      "question: a\u00a0b _ c context: €5—\u2003 [ x ] ^ ` ~ ")


def test_judged_by_all_answers():
  task = tasks.get_task("squad_v010_allanswers_examples")
  example = {"answers": ["5 % ", "five"], "question": "Q", "context": "C"}
  found = tasks.evaluate(task, [example] * 2, ["5 % "] * 2, ["five", "six"])
  assert (found["em"], found["f1"]) == (50.0, 50.0)
  assert found["squad negative samples"] == (
      "context: C\nquestion: Q\nanswers: 5 % ; five\nprediction: six")


def test_out_of_domain_sets_are_validated_on_their_test_split():
  mixture = tasks.get_task("squad_to_mrqa_examples")
  assert len(mixture.tasks) == 7
  splits = {task.name: dict(text_tasks.source_of(task).splits)
            for task, _ in mixture.tasks}
  assert splits.pop("squad_v010_allanswers_examples") == {
      "train": "train", "validation": "validation"}
  assert all(one == {"validation": "test"} for one in splits.values())
