# SPDX-License-Identifier: Apache-2.0
"""OpenRLHF's weights travel from trainer to vLLM over NCCL, through one method: ``broadcast``. Here, over gloo."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any

from fp16_patch.patching import Patch

if TYPE_CHECKING:
    import torch

TRAINER = 0
"""The rank that sends."""

TIMEOUT = timedelta(minutes=5)


class GlooBroadcast:
    """The part of vLLM's PyNcclCommunicator that weight updates use. Values arrive bit for bit, in any dtype.

    As with NCCL, the trainer waits neither for the others to connect nor for them to receive: it goes on to ask Ray
    what became of the receivers, so that an error in one of them ends the run, and does not hang it.
    """

    def __init__(self, host: str, port: int, rank: int, world_size: int) -> None:
        self._rank = rank
        self._group: Future[Any] = Future()
        self._sending: Any = None
        Thread(target=self._connect, args=(host, port, world_size), daemon=True).start()
        if rank != TRAINER:
            self._group.result()

    def broadcast(self, tensor: torch.Tensor, src: int, stream: object = None) -> None:
        import torch

        options = torch.distributed.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        data = tensor.contiguous()
        if self._sending is not None:
            self._sending.wait()
        work = self._group.result().broadcast([data.view(-1).view(torch.uint8)], options)
        if self._rank == src:
            self._sending = work
            return
        work.wait()
        if data is not tensor:
            tensor.copy_(data)

    def _connect(self, host: str, port: int, world_size: int) -> None:
        from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

        try:
            store = TCPStore(host, port, world_size, self._rank == TRAINER, TIMEOUT)
            group = ProcessGroupGloo(PrefixStore("weights", store), self._rank, world_size, TIMEOUT)
        except BaseException as error:
            self._group.set_exception(error)
        else:
            self._group.set_result(group)


def _over_gloo(original: Callable[..., Any]) -> Callable[..., Any]:
    def stateless_init_process_group(
        master_address: str, master_port: int, rank: int, world_size: int, device: object
    ) -> GlooBroadcast:
        return GlooBroadcast(master_address, master_port, rank, world_size)

    return stateless_init_process_group


PATCHES = (
    Patch(
        name="cpu-weights-over-gloo",
        target="openrlhf.utils.distributed_util:stateless_init_process_group",
        also_bound=("openrlhf.trainer.ray.ppo_actor:stateless_init_process_group",),
        kind="replace",
        distribution="openrlhf",
        versions=">=0.11.2,<0.12",
        process="trainer rank and vLLM worker",
        reason="Weight updates go through vLLM's NCCL communicator, which needs GPUs, whatever --vllm.sync_backend "
        "says. The one method that is used, over gloo.",
        upstream="--vllm.sync_backend is not passed on to stateless_init_process_group; not reported",
        remove_when="--vllm.sync_backend gloo updates weights over gloo",
        make=_over_gloo,
        fingerprint="0f4de7e6719a9922",
    ),
)
