"""Listing, searching and describing tasks."""

import json
import subprocess
import sys

import pytest

from prompt_tuning.data import tasks, text_tasks
from prompt_tuning.scripts import show_tasks


def printed(capsys, *arguments):
  show_tasks.main(list(arguments))
  return capsys.readouterr().out.splitlines()


def test_everything_is_listed(capsys):
  lines = printed(capsys)
  names = [line.split()[0] for line in lines if line.startswith("  ")]
  families = tasks.families().values()
  assert sorted(names) == sorted([*tasks.registered(), *(
      name for family in families
      for name in (*family.TASKS, *family.MIXTURES))])


def test_a_search_shows_sources_and_rates(capsys):
  assert printed(capsys, "--match", "^taskless_glue_sst2_v200$") == [
      "glue (1)", "  taskless_glue_sst2_v200  glue/sst2:2.0.0"]
  (_, line) = printed(capsys, "--match", "index_super_glue_v102_.*_propor")
  assert "+ 250 x task_index_super_glue_cb_v102_examples" in line
  assert "0 x task_index_super_glue_wsc_v102_simple_eval_examples" in line


def test_examples_of_a_task(capsys, monkeypatch):
  name = "task_index_glue_sst2_v200"
  source = text_tasks.source_of(tasks.get_task(name))
  monkeypatch.setattr(type(source), "rows", lambda self, split: iter(
      [{"sentence": f"{split} é", "label": 1, "idx": i} for i in range(9)]))
  head, *rest = printed(capsys, "--task", name, "--count", "2")
  assert head == (f"{name}: from glue/sst2:2.0.0; splits train, validation, "
                  "test; task index 6 in front")
  examples = "".join(rest).replace("}{", "}\n{").splitlines()
  assert [json.loads(one) for one in examples] == [
      {"inputs": "sentence: validation é", "targets": "positive", "idx": i}
      for i in range(2)]


def test_a_mixture_shows_its_members_that_have_the_split(capsys, monkeypatch):
  name = "glue_mnli_and_dev_v200_examples"
  source = text_tasks.source_of(tasks.get_task("glue_mnli_v200"))
  monkeypatch.setattr(type(source), "rows", lambda self, split: iter(
      [{"premise": "p", "hypothesis": "h", "label": 0, "idx": 0}]))
  out = "\n".join(printed(capsys, "--task", name, "--split", "train"))
  assert out.count("rate 1") == 3
  assert out.count('"inputs": "mnli hypothesis: h premise: p"') == 1


@pytest.mark.parametrize("arguments, sentence", [
    (["--match", "no such name"], "no task or mixture has 'no such name'"),
    (["--match", "("], "is no regular expression"),
    (["--task", "taskless_glue_sts2_v200"], "taskless_glue_sst2_v200"),
    (["--task", "glue_ax_v200"], "has no split 'validation': give --split"),
    (["--module", "no_such_module_here"], "cannot be imported")])
def test_bad_input_is_one_sentence(capsys, monkeypatch, arguments, sentence):
  monkeypatch.setitem(sys.modules, "seqio", None)
  with pytest.raises(SystemExit) as leaving:
    show_tasks.main(arguments)
  error = capsys.readouterr().err
  assert leaving.value.code == 2
  assert sentence in error and error.count("\n") == 1


def test_a_module_of_ones_own(capsys, monkeypatch, tmp_path):
  (tmp_path / "own_tasks_to_show.py").write_text(
      "from prompt_tuning.data import tasks\n"
      "tasks.register('own_task', lambda: tasks.Task(\n"
      "    'own_task', lambda split: iter([{'inputs': 'i', 'targets': 't'}]),"
      " ('train',)))\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  monkeypatch.setattr(tasks, "_registry", dict(tasks._registry))
  lines = printed(capsys, "--module", "own_tasks_to_show", "--task",
                  "own_task", "--split", "train")
  assert lines[0] == "own_task: splits train"
  assert json.loads("".join(lines[1:])) == {"inputs": "i", "targets": "t"}


def test_it_answers_within_three_seconds_of_computing():
  code = (
      "import sys, time; from prompt_tuning.scripts import show_tasks;"
      "show_tasks.main([]);"
      "print(time.process_time(), {'tensorflow', 'jax', 'seqio'}"
      " & set(sys.modules), file=sys.stderr)")
  found = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=True)
  seconds, heavy = found.stderr.split(maxsplit=1)
  assert heavy.strip() == "set()"
  assert float(seconds) < 3.0
