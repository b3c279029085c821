# SPDX-License-Identifier: Apache-2.0
"""Collect the answers of Ray actors; a missing answer is an error that names the process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fp16_patch.errors import Fp16PatchError

SECONDS = 300.0
"""Seconds to wait for a process before it counts as missing."""


def answers(calls: Mapping[str, Any]) -> dict[str, Any]:
    """Return process -> the result of its Ray call.

    Raises:
        Fp16PatchError: If a call failed or timed out; the first one counts.
    """
    import ray

    found = {}
    for name, reference in calls.items():
        try:
            found[name] = ray.get(reference, timeout=SECONDS)
        except Exception as error:
            raise Fp16PatchError(
                f"no answer from {name}: {type(error).__name__}: {error}",
                code="process-missing",
                allowed="an answer from every process of the run",
                next_step="look in the log for why it ended. Before training starts, check that fp16-patch is "
                "installed on that node, and that nothing removes its variables from that process's environment",
            ) from error
    return found
