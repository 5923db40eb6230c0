"""Summaries: white space stays as it is."""

from prompt_tuning.data import tasks


def test_texts(pair):
  assert pair("xsum_v110_examples", {
      "document": "A  b\nc", "summary": "s"}) == ("summarize: A  b\nc", "s")
  assert pair("cnn_dailymail_v310_examples", {
      "article": "A", "highlights": "h\ni"}) == ("summarize: A", "h\ni")


def test_judged_by_rouge_without_wrong_samples():
  task = tasks.get_task("xsum_v110_examples")
  found = tasks.evaluate(task, [{"inputs": "x"}], ["a b"], ["a b"])
  assert {name for name in found if name.startswith("rouge")} == {
      "rouge1", "rouge2", "rougeLsum"}
  assert found["rouge2"] == 100.0
  assert "xsum negative samples" not in found
