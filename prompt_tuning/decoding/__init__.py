"""Decoding: greedy, beam search and sampling over one cached model step.

Every search is a pure function that runs under one `jax.jit` and knows nothing
of the model but a `StepFn`:

    logits, cache = step(ids, cache)

* `ids`: [N, 1] int32, the token that each row chose last (`start_id` first);
* `logits`: [N, V], any float dtype, the next token's;
* `cache`: a nested dict; see `prompt_tuning.decoding.cache` for its leaves. It
  comes back with the same structure, shapes and dtypes.

N is the batch B for greedy search and B * k for k beams or samples, the k rows
of one example side by side. Searches expand the cache that they are given from
B to N rows. What a step closes over has B rows, and needs no reordering because
rows never leave their example: the k rows of `ids` that adjoin share one of it.

Returned tokens do not include `start_id`; after `eos_id` they are 0.
"""

from collections.abc import Callable
from typing import Any

import jax

Cache = Any
StepFn = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]
