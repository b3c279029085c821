# SPDX-License-Identifier: Apache-2.0
"""verl's trainer asks every two seconds whether the rollouts are done; a step here takes less than that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.patching import Patch

SECONDS = 0.1


def _often(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("poll_interval", SECONDS)
        original(self, *args, **kwargs)

    return __init__


PATCHES = (
    Patch(
        name="cpu-replay-buffer-polling",
        target="verl.trainer.ppo.v1.replay_buffer:ReplayBuffer.__init__",
        kind="wrap",
        distribution="verl",
        versions=">=0.9,<0.10",
        process="trainer (driver's task runner)",
        reason="poll_interval is 2 s and no configuration sets it: with steps of a second, most of a run is waiting. "
        "An interval given by the caller stays.",
        upstream="not reported",
        remove_when="verl has a setting for it, or waits without polling",
        make=_often,
        parameters=("self",),
    ),
)
