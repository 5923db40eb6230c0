"""Rows of TFDS, without a download."""

import sys
import types

import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.data import tasks, tfds

DATASET = tfds.dataset("glue/sst2:2.0.0", {"validation": "train[-9:]"})


@pytest.fixture
def fake(monkeypatch):
  """Puts modules in the place of TensorFlow and TFDS."""
  def put(load):
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(
        config=types.SimpleNamespace(
            set_visible_devices=lambda devices, kind: None)))
    monkeypatch.setitem(
        sys.modules, "tensorflow_datasets", types.SimpleNamespace(
            load=load, as_numpy=iter))

  return put


def test_rows_are_plain_values_of_the_right_split(fake):
  asked = []

  def load(name, split):
    asked.append((name, split))
    return [{"sentence": "é".encode(), "label": np.int64(1),
             "idx": {"query": np.int32(3)},
             "answers": np.array([b"a", b"b"], object)}]

  fake(load)
  assert list(DATASET.rows("validation")) == [{
      "sentence": "é", "label": 1, "idx": {"query": 3}, "answers": ["a", "b"]}]
  assert asked == [("glue/sst2:2.0.0", "train[-9:]")]


def test_absent_data_says_how_to_get_it(fake, monkeypatch):
  def load(name, split):
    raise ConnectionError("no network")

  fake(load)
  monkeypatch.setenv("TFDS_DATA_DIR", "/data")
  with pytest.raises(errors.UserError) as caught:
    list(DATASET.rows("validation"))
  assert "`tfds build glue/sst2:2.0.0 --data_dir=/data`" in str(caught.value)
  assert "into /data/glue/sst2/2.0.0" in str(caught.value)
  assert "ConnectionError" in str(caught.value)


def test_a_missing_package_breaks_reading_alone(monkeypatch):
  for name in ("tensorflow", "tensorflow_datasets"):
    monkeypatch.setitem(sys.modules, name, None)
  task = tasks.get_task("xsum_v110_examples")
  with pytest.raises(errors.UserError, match="pip install tensorflow"):
    next(task.examples("train"))
