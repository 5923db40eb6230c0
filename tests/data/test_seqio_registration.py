"""Our tasks in seqio's registry, as stock T5X reads and judges them."""

import pytest

from prompt_tuning.data import features, tasks, text_tasks, vocabularies

pytestmark = pytest.mark.parity

seqio = pytest.importorskip("seqio")
pytest.importorskip("tensorflow")

from prompt_tuning.data import seqio_tasks  # noqa: E402  (after the skip)

LENGTHS = {"inputs": 24, "targets": 12}
OURS = vocabularies.ByteVocabulary()
ROWS = [{"sentence": "a film that is much too long", "label": 1, "idx": 0},
        {"sentence": "é", "label": 0, "idx": 1}]


@pytest.fixture
def rows(monkeypatch):
  """Gives every dataset `ROWS`, and forgets what was registered."""
  known = [(registry, set(registry.names()))
           for registry in (seqio.TaskRegistry, seqio.MixtureRegistry)]
  source = text_tasks.source_of(tasks.get_task("glue_sst2_v200"))
  monkeypatch.setattr(
      type(source), "rows", lambda self, split: iter(self.given))
  monkeypatch.setattr(type(source), "given", ROWS, raising=False)
  yield lambda given: monkeypatch.setattr(type(source), "given", given)
  for registry, names in known:
    for name in set(registry.names()) - names:
      registry.remove(name)


def examples_of(name, split="train"):
  seqio_tasks.register(name, seqio.ByteVocabulary())
  dataset = seqio.get_mixture_or_task(name).get_dataset(
      LENGTHS, split, shuffle=False)
  return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("name", [
    "taskless_glue_sst2_v200_examples", "task_index_glue_sst2_v200",
    "pr:glue_sst2_v200_test_rc"])
def test_ids_are_those_of_our_engine(rows, name):
  split = tasks.get_task(name).splits[0]
  theirs = examples_of(name, split)
  ours = features.tokenize(tasks.get_task(name), split, OURS, OURS, LENGTHS)
  assert len(theirs) == len(ours)
  for i, example in enumerate(theirs):
    for feature in features.FEATURES:
      found, expected = example[feature].tolist(), ours.ids(feature, i).tolist()
      # seqio's cut may take the end-of-sequence; both keep what is before.
      assert found[:-1] == expected[:-1]
      assert len(found) == len(expected)


def test_documents_are_made_into_examples(rows):
  text = "a document of some forty-odd characters."
  rows([{"text": text}])
  name = "c4_v220_bart_token_deletion"
  theirs = examples_of(name)
  ours = features.tokenize(
      tasks.get_task(name), "train", OURS, OURS, LENGTHS)
  # 40 characters are pieces of 23 and 17, for the end-of-sequence takes one.
  assert [one["inputs"].tolist() for one in theirs] == [
      ours.ids("inputs", i).tolist() for i in range(2)]


def test_judged_as_seqio_judges(rows):
  name = "taskless_glue_sst2_v200_examples"
  examples = examples_of(name)
  task = seqio.TaskRegistry.get(name)
  goals = [task.postprocess_fn(text, example=example, is_target=True)
           for text, example in zip(("positive", "negative"), examples)]
  guesses = [task.postprocess_fn("positive", example=example, is_target=False)
             for example in examples]
  found = {}
  for metric in task.predict_metric_fns:
    found |= metric(goals, guesses)
  assert found["accuracy"] == 50.0
  assert isinstance(found["sst2 samples"], seqio.metrics.Text)
  assert found["sst2 negative samples"].textdata.count("example:") == 1


def test_ranked_by_scores(rows):
  name = "pr:glue_sst2_v200_test_rc"
  examples = examples_of(name, "validation")
  task = seqio.TaskRegistry.get(name)
  goals = [task.postprocess_fn("", example=example, is_target=True)
           for example in examples]
  assert goals[1] == ((0, 1), True, len("positive") + 1)
  (metric,) = task.score_metric_fns
  assert metric(goals, [-2.0, -1.0, -1.0, -2.0])["accuracy"] == 100.0


def test_mixtures_and_their_members(rows):
  seqio_tasks.register("glue_mnli_and_dev_v200_examples",
                       seqio.ByteVocabulary())
  mixture = seqio.MixtureRegistry.get("glue_mnli_and_dev_v200_examples")
  assert {task.name for task in mixture.tasks} == {
      f"glue_{name}_v200_examples"
      for name in ("mnli", "mnli_matched", "mnli_mismatched")}
  seqio_tasks.register("glue_mnli_and_dev_v200_examples")  # stays as it is


def test_vocabularies_by_name():
  assert isinstance(
      seqio_tasks._default_vocabulary("byt5_xsum_v110_examples"),
      seqio.ByteVocabulary)
  assert "mc4.250000" in seqio_tasks._default_vocabulary(
      "mt5_xsum_v110_examples").sentencepiece_model_file
  assert "cc_all.32000" in seqio_tasks._default_vocabulary(
      "xsum_v110_examples").sentencepiece_model_file
