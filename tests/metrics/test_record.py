"""ReCoRD's examples that repeat a query."""

from prompt_tuning.metrics import record


def test_a_query_counts_once_with_its_first_prediction():
  targets = [{"value": ["Ann", "Bob"], "group": (0, 0)},
             {"value": ["Ann", "Bob"], "group": (0, 0)},
             {"value": ["Cid"], "group": (0, 1)}]
  predictions = [{"value": text} for text in ("Bob", "wrong", "wrong")]
  assert record.record(targets, predictions) == {"em": 50.0, "f1": 50.0}


def test_nothing():
  assert record.record([], []) == {"em": 0.0, "f1": 0.0}
