# SPDX-License-Identifier: Apache-2.0
"""Keep the weights of two runs on one machine apart.

verl names the socket that weights travel through ``/tmp/rl-colocate-zmq-<Ray job>-...``. Every run on this platform
has a Ray cluster of its own, and the first job of every cluster is 01000000: two runs would take over each other's
sockets, and one train on what the other samples. Here the sockets live in the run's own ``RAY_TMPDIR``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fp16_patch.patching import Patch


def in_own_folder(handle: str) -> str:
    """The ZeroMQ handle, moved from /tmp into RAY_TMPDIR if that is set."""
    folder = os.environ.get("RAY_TMPDIR")
    return handle.replace("ipc:///tmp/", f"ipc://{folder}/", 1) if folder else handle


def _of_sender(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.zmq_handle = in_own_folder(self.zmq_handle)

    return __init__


def _of_receiver(original: Callable[..., str]) -> Callable[..., str]:
    def _get_zmq_handle(self: Any) -> str:
        return in_own_folder(original(self))

    return _get_zmq_handle


_REASON = (
    "Two runs at a time on one machine would take over each other's weight transfer sockets. Both ends move them "
    "into RAY_TMPDIR, which every process of a run inherits."
)
_UPSTREAM = "verl tells runs apart by the Ray job id, which two clusters share; not reported"
_REMOVE_WHEN = "verl's socket names differ between Ray clusters"

PATCHES = (
    Patch(
        name="cpu-sender-socket",
        target="verl.workers.rollout.vllm_rollout.vllm_rollout:ServerAdapter.__init__",
        kind="wrap",
        distribution="verl",
        versions=">=0.9,<0.10",
        process="trainer rank",
        reason=_REASON,
        upstream=_UPSTREAM,
        remove_when=_REMOVE_WHEN,
        make=_of_sender,
        parameters=("self",),
    ),
    Patch(
        name="cpu-receiver-socket",
        target="verl.workers.rollout.vllm_rollout.utils:vLLMColocateWorkerExtension._get_zmq_handle",
        kind="wrap",
        distribution="verl",
        versions=">=0.9,<0.10",
        process="vLLM worker",
        reason=_REASON,
        upstream=_UPSTREAM,
        remove_when=_REMOVE_WHEN,
        make=_of_receiver,
        parameters=("self",),
    ),
)
