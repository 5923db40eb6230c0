"""SST-2's text; the download itself needs the network and is not run."""

from prompt_tuning.data import glue, tasks


def test_text_is_the_published_one():
  # Oracle: the format that the original's task prints.
  assert glue.sst2_text({"sentence": b"a fine film", "label": 1}) == {
      "inputs": "sentence: a fine film", "targets": "positive"}
  assert glue.sst2_text({"sentence": "dull", "label": 0})["targets"] == (
      "negative")
  assert glue.sst2_text({"sentence": "?", "label": -1})["targets"] == "<unk>"


def test_found_by_its_name_without_loading_anything():
  task = tasks.get_task("taskless_glue_sst2_v200_examples")
  assert task.splits == ("train", "validation", "test")
