# SPDX-License-Identifier: Apache-2.0
"""Send weights over real Ray, without a model, to receivers that succeed, fail, stop early or die.

Run by ``test_weight_transfer.py`` in a process of its own, where verl's platform is the CPU. Prints JSON:
case -> {"code": of the error or null, "error": its text or null, "seconds": until the sender returned}.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from typing import Any

import ray
import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import (
    BucketedWeightReceiver,
    BucketedWeightSender,
)
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

WEIGHTS = {f"layer.{i}": torch.full((400_000,), float(i)) for i in range(4)}  # four buckets of 1 MB and more


class Server:
    """A substitute for verl's vLLM server actor: ``collective_rpc`` runs the receiver."""

    def collective_rpc(self, method: str, timeout: float | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if kwargs["fate"] == "never starts":
            raise RuntimeError("no weight called layer.0 in this model")
        if kwargs["fate"] == "returns early":
            return "done"
        if kwargs["fate"] == "dies":
            os._exit(1)
        received: dict[str, float] = {}

        def on_bucket(weights: list[tuple[str, torch.Tensor]], is_last: bool) -> None:
            if kwargs["fate"] == "fails half way" and "layer.2" in dict(weights):
                raise RuntimeError("layer.2 has the wrong shape")
            if kwargs["fate"] == "is slow":
                time.sleep(1.5)
            received.update((name, weight.sum().item()) for name, weight in weights)

        BucketedWeightReceiver(kwargs["handle"], torch.device("cpu"), use_shm=True).receive_weights(on_bucket)
        assert received == {name: weight.sum().item() for name, weight in WEIGHTS.items()}, received
        return "done"


def send(fate: str, server: Any) -> dict[str, Any]:
    handle = f"ipc://{tempfile.gettempdir()}/fp16-patch-test-{os.getpid()}-{fate.replace(' ', '-')}.sock"
    adapter = object.__new__(ServerAdapter)  # its constructor wants a whole rollout
    adapter._has_server, adapter.zmq_handle = True, handle
    adapter.server_handle = server

    async def update() -> None:
        kwargs = {"fate": fate, "handle": handle}
        future = await adapter._execute_method("update_weights_from_ipc", non_block=True, kwargs=kwargs)
        await BucketedWeightSender(handle, bucket_size_mb=2, use_shm=True).async_send_weights(iter(WEIGHTS.items()))
        await future

    start = time.monotonic()
    try:
        asyncio.run(update())
        error: dict[str, Any] = {"code": None, "error": None}
    except Exception as raised:
        error = {"code": getattr(raised, "code", None), "error": f"{type(raised).__name__}: {raised}"}
    print(f"{fate}: done", file=sys.stderr, flush=True)
    return error | {"seconds": time.monotonic() - start}


if __name__ == "__main__":
    ray.init(address="local", num_cpus=8, include_dashboard=False, object_store_memory=100 * 2**20)
    server = ray.remote(Server).remote()
    json.dump({fate: send(fate, server) for fate in sys.argv[1:]}, sys.stdout)
