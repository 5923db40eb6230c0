"""Published names: all resolve, lazily, and unknown ones have neighbours."""

import json
import subprocess
import sys

import pytest

from prompt_tuning import errors
from prompt_tuning.data import tasks, text_tasks
from prompt_tuning.train import inputs, settings

# Those of the original, and T5's own that its mixtures are made of.
COUNTS = {
    "glue": (144, 6), "super_glue": (72, 7), "glue_transfer": (12, 12),
    "qa": (12, 7), "summarization": (2, 0), "spot": (29, 1),
    "recycling": (28, 16), "perceptron": (66, 22), "c4": (3, 0)}

# Mixtures of the original that mix the variant with the task's name.
MIXED_UP = {f"{prefix}_glue_mnli_and_dev_{version}_examples"
            for prefix in ("taskless", "task_index")
            for version in ("v002", "v200")}


def test_how_many_tasks_and_mixtures():
  assert {name: (len(family.TASKS), len(family.MIXTURES))
          for name, family in tasks.families().items()} == COUNTS


@pytest.fixture
def published(shared_data):
  """The original's tasks and mixtures, as they were when it ran."""
  path = shared_data.parent / "spec" / "upstream_tasks.json"
  if not path.is_file():
    pytest.skip(f"no {path}")
  modules = json.loads(path.read_text()).values()
  return [{name: facts for module in modules
           for name, facts in module[kind].items()}
          for kind in ("tasks", "mixtures")]


def test_every_task_of_the_original_reads_the_same_data(published):
  theirs, _ = published
  assert len(theirs) == 330
  for name, facts in theirs.items():
    task = tasks.get_task(name)
    source = text_tasks.source_of(task)
    assert (task.name, source.name) == (name, facts["src"])
    if facts["splits"] != "None":
      splits = json.loads(facts["splits"].replace("'", '"'))
      assert dict(source.splits) == splits, name
    if "dpr" not in name:  # whose metrics are another task's
      assert bool(task.metric_fns or task.score_metric_fns) == any(
          "text_examples" not in metric for metric in facts["metrics"]), name


def test_every_mixture_of_the_original_has_its_rates(published):
  _, theirs = published
  assert len(theirs) == 71
  for name, rates in theirs.items():
    found = {task.name: rate for task, rate in tasks.get_task(name).tasks}
    if name in MIXED_UP:
      prefix = name.split("glue_")[0]
      rates = {prefix + member: rate for member, rate in rates.items()}
    assert found == {member: float(rate) for member, rate in rates.items()}


@pytest.mark.parametrize("prefix", ["mt5_", "byt5_"])
def test_names_for_other_vocabularies(prefix):
  task = tasks.get_task(f"{prefix}taskless_glue_sst2_v200")
  assert task.name == f"{prefix}taskless_glue_sst2_v200"
  mixture = tasks.get_task(f"{prefix}squad_to_race_examples")
  assert [one.name for one, _ in mixture.tasks] == [
      f"{prefix}squad_v010_allanswers_examples",
      f"{prefix}mrqa_race_v100_examples"]


def test_an_unknown_name_has_neighbours(monkeypatch):
  monkeypatch.setitem(sys.modules, "seqio", None)
  with pytest.raises(errors.UserError, match="taskless_glue_sst2_v200"):
    tasks.get_task("taskless_glue_sts2_v200")


def test_names_resolve_without_anything_heavy():
  code = (
      "import sys; from prompt_tuning.data import tasks;"
      "[tasks.get_task(n) for f in tasks.families().values()"
      " for n in (*f.TASKS, *f.MIXTURES)];"
      "print(*{'tensorflow', 'tensorflow_datasets', 'seqio', 'jax', 'scipy'}"
      " & set(sys.modules))")
  found = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert found.stdout.strip() == ""


def test_a_mixture_gives_those_of_its_tasks_that_have_the_split():
  def names(split):
    dataset = settings.DatasetConfig(
        mixture_or_task_name="glue_mnli_and_dev_v200_examples",
        task_feature_lengths={"inputs": 8, "targets": 8}, split=split,
        batch_size=8)
    return {task.name for task, _ in inputs.members(dataset)}

  assert names("train") == {"glue_mnli_v200_examples"}
  assert names("validation") == {
      "glue_mnli_matched_v200_examples", "glue_mnli_mismatched_v200_examples"}
  assert len(names("no such split")) == 3
