# SPDX-License-Identifier: Apache-2.0
"""A vLLM worker that fails while it receives weights must end the run with its error, not hang it.

verl's trainer rank starts the receivers (``update_weights_from_ipc`` in every vLLM worker, through Ray), keeps the
ObjectRef, and sends bucket after bucket over a ZeroMQ REQ socket, waiting for each acknowledgement with no limit. A
receiver that raised acknowledges nothing, so the ObjectRef that holds its error is never looked at.

Here the sender's waits look at that ObjectRef once a second. No time limit is set: a slow receiver is not a dead one.
A rank without a server of its own holds no ObjectRef and waits as before; the rank that has it ends the run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.releases import RELEASE, TRAINER_RANK
from fp16_patch.patching import ProcessKind, hook, wrap

if TYPE_CHECKING:
    import zmq

POLL_MS = 1000
_RECEIVING = ("update_weights_from_ipc", "update_verl_delta_weights")

_receivers: dict[str, Any] = {}
"""ZeroMQ handle -> the ObjectRef of the receivers that have been started for it."""


class WatchedSocket:
    """A sender's REQ socket that stops waiting when its receivers have stopped.

    Raises Fp16PatchError with the receivers' own error, or saying that they finished early.
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
        """Close the socket without waiting for an unsent message."""
        self._socket.close(linger=0)  # an unsent message must not hold up the end of the process

    def _wait_for(self, event_name: str) -> None:
        import ray
        import zmq

        event = getattr(zmq, event_name)
        while not self._socket.poll(POLL_MS, event):
            finished, _ = ray.wait([self._receivers], timeout=0)
            # Receivers return right after the last acknowledgement, which may still be on its way.
            if finished and not self._socket.poll(POLL_MS, event):
                raise _failure(self._receivers)


def _failure(receivers: Any) -> Fp16PatchError:
    import ray

    what = "vLLM stopped receiving weights before all were sent"
    next_step = "look for the first error of a vLLM worker (Worker, EngineCore) in the output above"
    try:
        ray.get(receivers)
    except Exception as error:
        cause = getattr(error, "cause", None) or error  # Ray's own errors print whole tracebacks
        failure = Fp16PatchError(
            f"{what}: {type(cause).__name__}: {cause}", code="weight-transfer-failed", next_step=next_step
        )
        failure.__cause__ = error
        return failure
    return Fp16PatchError(f"{what}, and reported success", code="weight-transfer-failed", next_step=next_step)


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
    reason="Remembers the ObjectRef that holds the receivers' error, for the sender. Changes no result.",
)
async def remember_receivers(
    original: Callable[..., Awaitable[Any]],
    self: Any,
    method: str,
    non_block: bool = False,
    *args: Any,
    **kwargs: Any,
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
    reason="The run hangs for ever, with no error, when a vLLM worker fails in a weight update. Looks once a "
    "second whether it has; sets no time limit.",
)
def watch_receivers(original: Callable[..., None], self: Any) -> None:
    """Put a :class:`WatchedSocket` in the place of the sender's socket."""
    original(self)
    receivers = _receivers.pop(self.zmq_handle, None)
    if receivers is not None:
        self.socket = WatchedSocket(self.socket, receivers)


@wrap(
    f"{_ROLLOUT}.bucketed_weight_transfer:BucketedWeightReceiver.receive_weights",
    name="verl-weight-receiver-error",
    release=RELEASE,
    processes={ProcessKind.VLLM_WORKER},
    required=False,  # vLLM workers import the module at the first weight update; a failure there ends the run
    reason='With shared memory, what fails in the worker is masked by a BufferError from cleaning up: "cannot '
    'close exported pointers exist". Raises the failure itself.',
    upstream="https://github.com/verl-project/verl/pull/7366 (open)",
    remove_when="verl's BucketedWeightReceiver raises what went wrong",
)
def raise_receiver_error(original: Callable[..., None], self: Any, on_bucket_received: Callable[..., None]) -> None:
    """Raise the receiver's error in the place of the BufferError that masks it."""
    try:
        original(self, on_bucket_received)
    except BufferError as error:
        # The frames of the failure hold views into the shared memory, so cleaning up fails as well.
        raise (error.__context__ or error) from None
