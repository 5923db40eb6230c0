"""What happens to T5X's checkpoints on their way out and in.

Both are T5X's `state_transformation_fns`, which its legacy checkpointer and
its orbax manager call alike. (A class bound to `checkpointer_cls`, as the
original has it, is passed over by orbax, which is T5X's default.)
"""

from collections.abc import Mapping, Sequence
import os
import tempfile
from typing import Any

import flax
import jax
from t5x import state_utils
import tensorflow as tf

from prompt_tuning import errors
from prompt_tuning.checkpoints import runs
from prompt_tuning.train import state as state_lib

Tree = Mapping[str, Any]


def save_numpy(
    state: Tree, infos: Tree, *, directory: str, patterns: Sequence[str]
) -> tuple[Tree, Tree]:
  """Writes what was trained as `.npy` beside each checkpoint of T5X.

  `{directory}/numpy_checkpoints/checkpoint_{step}/encoder.prompt.prompt.prompt`
  in float32, whatever the checkpoint's dtype; T5X's `keep` does not count
  these. See `runs.save_numpy`.

  Args:
    state: T5X's state dict, with `target` and `state/step`.
    infos: T5X's; returned as they are.
    directory: the run's, local or remote (`gs://…`).
    patterns: regular expressions of whole paths of parameters.

  Returns:
    `state` and `infos`.
  """
  trained, _ = state_lib.split(flax.core.unfreeze(state["target"]), patterns)
  arrays = {path: _now(value)
            for path, value in state_lib.flatten(trained).items()}
  step = int(_now(state["state"]["step"]))
  if "://" not in directory:
    runs.save_numpy(directory, step, arrays)
    return state, infos
  with tempfile.TemporaryDirectory() as local:
    folder = runs.save_numpy(local, step, arrays)
    if jax.process_index() == 0:
      _copy(folder, os.path.join(
          directory, os.path.relpath(folder, os.path.realpath(local))))
  return state, infos


def restore_base(
    checkpoint: Tree, model: Tree, *, patterns: Sequence[str],
    from_file: bool = False, is_resuming: bool = False,
) -> Tree:
  """Takes all but what is trained from a checkpoint of the base model.

  With `fallback_to_scratch` T5X initialises whatever this leaves out; so it
  must leave out nothing else, or a network with random layers would be trained
  under a warning in the log.

  Args:
    checkpoint: T5X's state dict, with descriptions in place of arrays.
    model: the same of the model to be restored.
    patterns: regular expressions of what is trained; empty where all of it is
      in the checkpoint.
    from_file: whether nothing is trained any more, and what was comes from the
      one array of PROMPT_FILE.
    is_resuming: whether the checkpoint is this run's own; all of it is taken.

  Returns:
    The part of the checkpoint to restore.

  Raises:
    UserError: naming parameters that the checkpoint lacks, or that neither it
      nor PROMPT_FILE gives, which would be random.
  """
  if is_resuming:
    return checkpoint
  there = state_utils.flatten_state_dict(checkpoint)
  trained = state_lib.match_any(patterns)
  names = [name for name in state_utils.flatten_state_dict(model)
           if name.startswith("target/")]
  wanted = [name for name in names
            if not trained(name.removeprefix("target/"))]
  if from_file and len(names) > len(wanted) + 1:
    other = sorted(set(names) - set(wanted))
    raise errors.UserError(
        f"PROMPT_FILE is one array, and the model trains {len(other)} "
        f"({', '.join(other[:3])}, …): take runs/t5x_trained_eval.gin or "
        "t5x_trained_infer.gin, with the run's own checkpoint as "
        "CHECKPOINT_PATH.")
  missing = [name for name in wanted if there.get(name) is None]
  if missing:
    raise errors.UserError(
        f"The checkpoint lacks {len(missing)} of the {len(wanted)} "
        f"{'frozen ' if patterns else ''}parameters, such as "
        f"{', '.join(missing[:3])}: take a checkpoint of this model, or give "
        "the size of the checkpoint's.")
  return flax.traverse_util.unflatten_dict(
      {name: there[name] for name in [*wanted, "state/step"]}, sep="/")


def _now(value):
  """An array, read if T5X meant to read it later."""
  return value.get() if hasattr(value, "get") else value


def _copy(folder: str, remote: str):
  tf.io.gfile.makedirs(remote)
  for name in os.listdir(folder):
    tf.io.gfile.copy(
        os.path.join(folder, name), os.path.join(remote, name),
        overwrite=True)
