"""Sets and shares of labels by hand."""

import json

from prompt_tuning.data import tasks
from prompt_tuning.metrics import label_sets


def test_sets_and_shares():
  found = label_sets.label_sets([
      tasks.Judged({}, target, output, None, None) for target, output in (
          ("yes", "yes"), ("yes", "ya"), ("no", "yes"), ("maybe", "yes"))],
      "t")
  assert found["t label stats"].split("\n\n") == [
      "target label set cardinality: 3",
      "prediction label set cardinality: 2",
      "target ∩ prediction cardinality: 1",
      "target - prediction cardinality: 2",
      "prediction - target cardinality: 1"]
  assert json.loads(found["t label distributions"].strip("`\n")) == {
      "target label distribution": {"yes": 0.5, "no": 0.25, "maybe": 0.25},
      "prediction label distribution": {"yes": 0.75, "ya": 0.25}}
