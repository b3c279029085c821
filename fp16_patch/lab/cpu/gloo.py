# SPDX-License-Identifier: Apache-2.0
"""Send OpenRLHF's weight updates from trainer to vLLM over gloo instead of NCCL."""

from __future__ import annotations

from concurrent.futures import Future
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any

from fp16_patch.lab.cpu.releases import OPENRLHF
from fp16_patch.patching import ProcessKind, replace

if TYPE_CHECKING:
    import torch

TRAINER = 0
"""The sending rank."""

TIMEOUT = timedelta(minutes=5)


class GlooBroadcast:
    """Implement the part of vLLM's PyNcclCommunicator that weight updates use. Values arrive bit for bit, in any dtype.

    As with NCCL, the trainer does not wait for the receivers to connect or to receive. It continues and asks Ray for
    their results, so that an error in a receiver ends the run instead of hanging it.
    """

    def __init__(self, host: str, port: int, rank: int, world_size: int) -> None:
        self._rank = rank
        self._group: Future[Any] = Future()
        self._sending: Any = None
        Thread(target=self._connect, args=(host, port, world_size), daemon=True).start()
        if rank != TRAINER:
            self._group.result()

    def broadcast(self, tensor: torch.Tensor, src: int, stream: object = None) -> None:
        """Send ``tensor`` from rank ``src``, or receive into it on the other ranks. Any shape and dtype, on the CPU."""
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


@replace(
    "openrlhf.utils.distributed_util:stateless_init_process_group",
    also_bound=("openrlhf.trainer.ray.ppo_actor:stateless_init_process_group",),
    release=OPENRLHF,
    processes={ProcessKind.TRAINER_RANK, ProcessKind.VLLM_WORKER},
    reason="OpenRLHF sends weight updates through vLLM's NCCL communicator, which needs GPUs, whatever "
    "--vllm.sync_backend says. The patch sends them over gloo.",
    upstream="--vllm.sync_backend is not passed on to stateless_init_process_group; not reported",
    remove_when="--vllm.sync_backend gloo updates weights over gloo",
    fingerprint="0f4de7e6719a9922",
)
def _cpu_weights_over_gloo(
    master_address: str, master_port: int, rank: int, world_size: int, device: object
) -> GlooBroadcast:
    return GlooBroadcast(master_address, master_port, rank, world_size)
