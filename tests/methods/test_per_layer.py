"""What a layer's prompt does to its input; in a model: test_original.py."""

import jax.numpy as jnp
import numpy as np

from prompt_tuning.methods import per_layer


def test_replace_and_add():
  x = jnp.arange(24.0).reshape(2, 4, 3)
  prompt = 100 + jnp.arange(12.0).reshape(2, 2, 3)
  for combine, front in ((per_layer.replace_prompt, prompt),
                         (per_layer.add_prompt, prompt + x[:, :2])):
    found = combine(prompt, x, None)
    np.testing.assert_array_equal(found[:, :2], front)
    np.testing.assert_array_equal(found[:, 2:], x[:, 2:])


def test_room_is_zeros_in_front():
  x = jnp.ones((2, 4, 3))
  found = per_layer.Room(2).apply({}, None, x)
  np.testing.assert_array_equal(found[:, :2], np.zeros((2, 2, 3)))
  np.testing.assert_array_equal(found[:, 2:], x)
