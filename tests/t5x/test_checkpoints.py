"""The two hooks by themselves; test_runs.py has them under T5X's managers."""

import numpy as np
import pytest

pytest.importorskip("t5x", reason="T5X is not installed: see docs/t5x.md")

import tensorflow as tf  # noqa: E402

from prompt_tuning import errors  # noqa: E402
from prompt_tuning.formats import npy  # noqa: E402
from prompt_tuning.t5x import checkpoints  # noqa: E402

PATTERNS = [".*/prompt/.*"]
PROMPT = np.arange(6, dtype=np.float32).reshape(2, 3)
NAME = "numpy_checkpoints/checkpoint_7/encoder.prompt.prompt"


def state(**more):
  return {"state": {"step": np.int32(7), "param_states": {}},
          "target": {"encoder": {"prompt": {"prompt": PROMPT},
                                 "norm": {"scale": np.ones(3)}, **more}}}


def test_what_is_trained_is_written_in_float32(tmp_path):
  given = state()
  given["target"]["encoder"]["prompt"]["prompt"] = PROMPT.astype("float16")
  out = checkpoints.save_numpy(
      given, "infos", directory=str(tmp_path), patterns=PATTERNS)
  assert out[0] is given and out[1] == "infos"
  assert np.array_equal(npy.read(tmp_path / NAME), PROMPT)
  assert np.load(tmp_path / NAME).dtype == np.float32
  assert len(list((tmp_path / "numpy_checkpoints").rglob("encoder.*"))) == 1


def test_arrays_that_are_read_later_are_read(tmp_path):
  """T5X's legacy checkpointer gives these."""
  class Lazy:
    def get(self):
      return PROMPT

  given = state()
  given["target"]["encoder"]["prompt"]["prompt"] = Lazy()
  checkpoints.save_numpy(
      given, None, directory=str(tmp_path), patterns=PATTERNS)
  assert np.array_equal(np.load(tmp_path / NAME), PROMPT)


def test_remote_folders():
  checkpoints.save_numpy(
      state(), None, directory="ram://run", patterns=PATTERNS)
  with tf.io.gfile.GFile(f"ram://run/{NAME}", "rb") as file:
    assert np.array_equal(np.load(file), PROMPT)


def test_the_base_without_what_is_trained():
  taken = checkpoints.restore_base(state(), state(), patterns=PATTERNS)
  assert set(taken["target"]["encoder"]) == {"norm"}
  assert taken["state"] == {"step": 7}
  own = state()
  assert checkpoints.restore_base(
      own, state(), patterns=PATTERNS, is_resuming=True) is own


def test_a_checkpoint_of_another_model_is_refused():
  bigger = state(layers_1={"scale": np.ones(3)})
  with pytest.raises(errors.UserError, match="lacks 1 of the 2 frozen.*"
                     "target/encoder/layers_1/scale"):
    checkpoints.restore_base(state(), bigger, patterns=PATTERNS)


def test_what_a_file_cannot_give_is_refused():
  """Instead of random values; a run's own checkpoint has all of it."""
  heads = {"row": {"kernel": np.ones(3)}}
  model = state(prompt={"prompt": {"shared": PROMPT, **heads}})
  with pytest.raises(errors.UserError, match="one array.*trains 2.*trained"):
    checkpoints.restore_base(
        state(), model, patterns=PATTERNS, from_file=True)
  with pytest.raises(errors.UserError, match="lacks 2 of the 3 parameters"):
    checkpoints.restore_base(state(), model, patterns=[])
  whole = checkpoints.restore_base(model, model, patterns=[])
  assert whole["target"] == model["target"]
