"""T5X's names. Oracle: what T5X does with them, by its documentation."""

import pytest

from prompt_tuning import errors, t5x_names


@pytest.mark.parametrize("name", [
    "partitioning.PjitPartitioner.num_partitions",
    "t5x.partitioning.PjitPartitioner.num_partitions",
    "PjitPartitioner.num_partitions"])
def test_modules_may_be_left_out_or_written_in_full(name):
  assert t5x_names.translated(name, "2") == ("sharding.make_mesh.model", "2")


@pytest.mark.parametrize("name", [
    "BATCH_SIZE", "train/utils.DatasetConfig.split",
    "adafactor.Adafactor.beta1",
    "vocabularies.SentencePieceVocabulary.sentencepiece_model_file"])
def test_names_that_are_the_same_here(name):
  assert t5x_names.translated(name, "1") == (name, "1")
  assert t5x_names.needless(name, "1") is None


@pytest.mark.parametrize("submesh, devices", [
    ("(4, 4, 1, 2)", "32"), ("[1, 1, 1, 1]", "1"), ("(2,)", "2")])
def test_a_submesh_is_its_devices(submesh, devices):
  name = "partitioning.PjitPartitioner.model_parallel_submesh"
  assert t5x_names.translated(name, submesh) == (
      "sharding.make_mesh.model", devices)


@pytest.mark.parametrize("submesh", ["()", "4", "(0, 1)", "'a'", "x(", "%M"])
def test_what_is_no_submesh(submesh):
  with pytest.raises(errors.UserError, match="is not a submesh"):
    t5x_names.translated(
        "partitioning.PjitPartitioner.model_parallel_submesh", submesh)


@pytest.mark.parametrize("name", [
    "partitioning.PjitPartitioner.num_partitions",
    "partitioning.PjitPartitioner.model_parallel_submesh",
    "trainer.Trainer.num_microbatches"])
def test_none_is_one(name):
  assert t5x_names.needless(name, "None") == "it is 1 unless it is given"
  assert t5x_names.needless(name, "(2, 1, 1, 1)") is None


@pytest.mark.parametrize("rules, fits", [
    ("()", True), ("((r'^.*prompt.*$', None),)", True),
    ("[('a', None), ('b', None)]", True), ("((r'a', 'b'),)", False),
    ("'a'", False), ("%RULES", False)])
def test_parameters_may_be_skipped_but_not_renamed(rules, fits):
  name = "utils.RestoreCheckpointConfig.assignment_map"
  if fits:
    assert "may be absent" in t5x_names.needless(name, rules)
  else:
    with pytest.raises(errors.UserError, match="renames parameters"):
      t5x_names.needless(name, rules)
