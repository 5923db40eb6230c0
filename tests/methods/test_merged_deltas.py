"""Merged weights are the function that base and delta were together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.methods import ia3, lora
from prompt_tuning.train import state as state_lib

EVERYTHING = (r".*/(query|key|value|out|wi_0|wi_1|wo)", ".*logits_dense")
DELTAS = {
    "ia3": ia3.Ia3(),
    "lora": lora.Lora(rank=2, alpha=3.0, targets=EVERYTHING)}

pytestmark = pytest.mark.usefixtures("highest_precision")


@pytest.fixture(scope="module", params=DELTAS)
def merged(request, delta_t5):
  """A delta, parameters with it, merged ones, and the latter's logits."""
  name, delta = request.param, DELTAS[request.param]
  params = delta_t5.params(delta_t5.model(delta))
  merged = delta.merge(params)
  with jax.default_matmul_precision("highest"):
    logits = delta_t5.logits(delta_t5.model(), merged)
    unchanged = delta_t5.logits(delta_t5.model(), params)
  assert np.abs(logits - unchanged).max() > 0.1
  assert not any(name in path for path in state_lib.flatten(merged))
  return delta, params, merged, logits


@pytest.mark.parametrize("options", [
    {}, {"remat": "full"}, {"scan_layers": True, "remat": "dots"}])
def test_merged_weights_give_the_same_logits(delta_t5, merged, options):
  """However the layers are run."""
  delta, params, merged, expected = merged
  if options.get("scan_layers"):
    params = delta_t5.stacked(params)
    stacked = delta_t5.stacked(merged)
    jax.tree.map(np.testing.assert_array_equal, delta.merge(params), stacked)
  np.testing.assert_allclose(
      delta_t5.logits(delta_t5.model(delta, **options), params), expected,
      rtol=0, atol=1e-5 * np.abs(expected).max())


def test_merged_weights_decode_the_same(delta_t5, merged):
  delta, params, merged, _ = merged
  found, expected = (
      jax.jit(delta_t5.model(delta).predict)(tree, delta_t5.batch)
      for delta, tree in ((delta, params), (None, merged)))
  np.testing.assert_array_equal(found, expected)


def test_merging_keeps_the_dtype(merged):
  """Deltas in float32, the base in bfloat16: the merged weights' dtype."""
  delta, params, _, _ = merged
  of_delta = ("a", "b", "ia3")
  params = jax.tree_util.tree_map_with_path(
      lambda path, x: x if any(k.key in of_delta for k in path)
      else x.astype(jnp.bfloat16), params)
  dtypes = {x.dtype for x in jax.tree.leaves(params)}
  assert dtypes == {np.dtype(np.float32), np.dtype(jnp.bfloat16)}
  merged = delta.merge(params)
  assert {x.dtype for x in jax.tree.leaves(merged)} == {
      np.dtype(jnp.bfloat16)}
