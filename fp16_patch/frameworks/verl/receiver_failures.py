# SPDX-License-Identifier: Apache-2.0
"""End the run with the error of a vLLM worker that fails while it receives weights; stock verl hangs.

verl's trainer rank starts the receivers (``update_weights_from_ipc`` in every vLLM worker, through Ray) and keeps the
ObjectRef. It sends bucket after bucket over a ZeroMQ REQ socket, and waits for each acknowledgement without a limit. A
receiver that has failed acknowledges nothing, and nobody looks at the ObjectRef that holds its error.

These patches check that ObjectRef once a second while the sender waits. They set no time limit: a slow receiver has not
failed. A rank without a server holds no ObjectRef and waits as before; the rank that holds it ends the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.releases import TRAINER_RANK, VLLM_WORKER
from fp16_patch.patching import hook, wrap

if TYPE_CHECKING:
    import zmq

POLL_MS = 1000
_RECEIVING = ("update_weights_from_ipc", "update_verl_delta_weights")

_receivers: dict[str, Any] = {}
"""ZeroMQ handle -> the ObjectRef of the receivers that have been started for it."""


class WatchedSocket:
    """A sender's REQ socket that stops waiting when its receivers have stopped.

    Raises:
        Fp16PatchError: The receivers have failed, or finished early.
    """

    def __init__(self, socket: zmq.Socket[bytes], receivers: Any) -> None:
        self._socket, self._receivers = socket, receivers

    def send_pyobj(self, message: object) -> None:
        """Send ``message`` once a receiver takes it."""
        self._wait_for("POLLOUT")
        self._socket.send_pyobj(message)

    def recv(self) -> bytes:
        """Return the next message of the receivers."""
        self._wait_for("POLLIN")
        return self._socket.recv()

    def close(self) -> None:
        """Close the socket without waiting for an unsent message, which would delay the end of the process."""
        self._socket.close(linger=0)

    def _wait_for(self, event_name: str) -> None:
        import ray
        import zmq

        event = getattr(zmq, event_name)
        while not self._socket.poll(POLL_MS, event):
            finished, _ = ray.wait([self._receivers], timeout=0)
            # Receivers return right after the last acknowledgement, which may still be on its way.
            if finished and not self._socket.poll(POLL_MS, event):
                _raise_failure(self._receivers)


def _raise_failure(receivers: Any) -> NoReturn:
    import ray

    error: Exception | None = None
    try:
        ray.get(receivers)
        result = "they reported success"
    except Exception as raised:
        error = raised
        cause = getattr(error, "cause", None) or error  # Ray's own errors print whole tracebacks
        result = f"{type(cause).__name__}: {cause}"
    raise Fp16PatchError(
        f"vLLM's workers stopped receiving weights before all were sent: {result}",
        code="weight-transfer-failed",
        next_step="look for the first error of a vLLM worker (Worker, EngineCore) in the output above",
    ) from error


_ROLLOUT = "verl.workers.rollout.vllm_rollout"
_SENDER: dict[str, Any] = {
    **TRAINER_RANK,
    "upstream": "https://github.com/verl-project/verl/pull/7366 (open)",
    "remove_when": "verl's BucketedWeightSender raises when its receiver has failed",
}


@hook(
    f"{_ROLLOUT}.vllm_rollout:ServerAdapter._execute_method",
    name="verl-weight-receivers",
    **_SENDER,
    reason="keeps the ObjectRef that holds the receivers' error, for the sender; changes no result",
)
async def remember_receivers(
    original: Any, self: Any, method: str, non_block: bool = False, *args: Any, **kwargs: Any
) -> Any:
    """Keep the ObjectRef of the receivers that were started."""
    result = await original(self, method, non_block, *args, **kwargs)
    if method in _RECEIVING and non_block and result is not None:
        _receivers[self.zmq_handle] = result
    return result


@wrap(
    f"{_ROLLOUT}.bucketed_weight_transfer:BucketedWeightSender._init_socket",
    name="verl-weight-sender-watches",
    when=f"{_ROLLOUT}.vllm_rollout",
    **_SENDER,
    reason="the run hangs without an error when a vLLM worker fails in a weight update; checks for that once a "
    "second, and sets no time limit",
)
def watch_receivers(original: Any, self: Any) -> None:
    """Replace the sender's socket by a :class:`WatchedSocket`."""
    original(self)
    receivers = _receivers.pop(self.zmq_handle, None)
    if receivers is not None:
        self.socket = WatchedSocket(self.socket, receivers)


@wrap(
    f"{_ROLLOUT}.bucketed_weight_transfer:BucketedWeightReceiver.receive_weights",
    name="verl-weight-receiver-error",
    **VLLM_WORKER,
    required=False,  # vLLM workers import the module at the first weight update; a failure there ends the run
    reason="with shared memory a BufferError from cleaning up (cannot close exported pointers exist) masks the "
    "worker's error; raises the worker's error",
    upstream="https://github.com/verl-project/verl/pull/7366 (open)",
    remove_when="verl's BucketedWeightReceiver raises the worker's error",
)
def raise_receiver_error(original: Any, self: Any, on_bucket_received: Callable[..., None]) -> None:
    """Raise the receiver's error instead of the BufferError that masks it."""
    try:
        original(self, on_bucket_received)
    except BufferError as error:
        # The frames of the error hold views into the shared memory, so cleaning up fails as well.
        raise (error.__context__ or error) from None
