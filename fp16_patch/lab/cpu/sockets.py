# SPDX-License-Identifier: Apache-2.0
"""Give each run on a machine its own sockets for weight transfer.

verl names the socket for weight transfer ``/tmp/rl-colocate-zmq-<Ray job>-...``. Every run on this platform has its own
Ray cluster, and the first job of every cluster is 01000000. Two runs would therefore share sockets, and one would train
on the samples of the other. This module moves the sockets to the run's own ``RAY_TMPDIR``.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from fp16_patch.lab.cpu.releases import VERL
from fp16_patch.patching import ProcessKind, wrap


def move_to_ray_tmpdir(handle: str) -> str:
    """Return the ZeroMQ handle, moved from /tmp to ``RAY_TMPDIR`` if that is set."""
    folder = os.environ.get("RAY_TMPDIR")
    return handle.replace("ipc:///tmp/", f"ipc://{folder}/", 1) if folder else handle


_wrap = partial(
    wrap,
    release=VERL,
    reason="Two runs on one machine would use the same sockets for weight transfer. Both ends move them into "
    "RAY_TMPDIR, which every process of a run inherits.",
    upstream="verl tells runs apart by the Ray job id, which two clusters share; not reported",
    remove_when="verl's socket names differ between Ray clusters",
)


@_wrap("verl.workers.rollout.vllm_rollout.vllm_rollout:ServerAdapter.__init__", processes={ProcessKind.TRAINER_RANK})
def _cpu_sender_socket(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    self.zmq_handle = move_to_ray_tmpdir(self.zmq_handle)


@_wrap(
    "verl.workers.rollout.vllm_rollout.utils:vLLMColocateWorkerExtension._get_zmq_handle",
    processes={ProcessKind.VLLM_WORKER},
)
def _cpu_receiver_socket(original: Any, self: Any) -> str:
    return move_to_ray_tmpdir(original(self))
