# SPDX-License-Identifier: Apache-2.0
"""Find where an overflow began and which modules overflowed first.

An overflow can begin in five places: weights, forward pass, loss, backward pass, gradients of parameters. They are
checked in this order, the order of the pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow
from fp16_patch.loss_scaling.diagnosis.observations import Observations

MAX_CULPRITS = 3


class CauseKind(Enum):
    """Kinds of causes. The part of the value before a colon is the ``case`` of the JSON report."""

    WEIGHTS = "weights"
    NOTHING = "nothing"
    FORWARD_INPUT = "forward: the inputs are not finite"
    FORWARD_NOT_FP16 = "forward: a module that does not compute in FP16"
    FORWARD_FP16 = "forward: a module that computes in FP16"
    LOSS = "loss: the unscaled loss"
    SCALED_LOSS = "loss: the scaled loss"
    LOSS_GRADIENT = "loss: the first gradient of the backward pass"
    BACKWARD = "backward: a gradient between modules"
    PARAMETERS = "backward: gradients of parameters only"


@dataclass(frozen=True)
class Cause:
    """Where an overflow began."""

    kind: CauseKind
    culprits: list[str] = field(default_factory=list)
    """Names of the modules that overflowed first, at most three; empty if no module is to blame."""
    first: ModuleRow | None = None
    """The module where it began, in a forward or backward pass."""
    finite_before: Sequence[ModuleRow] = ()
    """Modules whose gradients came before ``first``'s in the backward pass, without those that contain it."""
    fp32_candidates: list[str] = field(default_factory=list)
    """Modules that would have to compute in FP32."""

    @property
    def case(self) -> str:
        """Return ``"weights"``, ``"forward"``, ``"loss"``, ``"backward"`` or ``"nothing"``."""
        return self.kind.value.partition(":")[0]


def find_cause(seen: Observations) -> Cause:
    """Return where the overflow in ``seen`` began."""
    overflowed = in_order(seen.rows, "first_overflow")
    losses = seen.losses
    if seen.weights:
        return Cause(CauseKind.WEIGHTS, _owners(seen, seen.weights))
    if not (overflowed or seen.parameters or losses.scaled_nonfinite):
        return Cause(CauseKind.NOTHING)
    # A loss that the model itself computes is not an overflow of its modules.
    origins = [row for row in in_order(seen.rows, "forward_overflow") if row.module or not losses.nonfinite]
    nonfinite = [row for row in in_order(seen.rows, "forward_order") if row.module and row.activation_nonfinite]
    if origins or nonfinite:
        return _forward(_innermost(origins or nonfinite[:1]))
    if losses.nonfinite or seen.bad_loss is not None:  # DeepSpeed scales the loss where nobody sees it before
        return Cause(CauseKind.LOSS)
    if losses.scaled_nonfinite or (overflowed and overflowed[0].first_overflow == 0):
        kind = CauseKind.SCALED_LOSS if losses.scaled_nonfinite else CauseKind.LOSS_GRADIENT
        culprits = [row.module for row in overflowed[:1]]
        return Cause(kind, culprits, fp32_candidates=culprits)
    if overflowed:
        return _backward(seen, overflowed[0])
    culprits = _owners(seen, seen.parameters)
    return Cause(CauseKind.PARAMETERS, culprits, fp32_candidates=culprits)


def _forward(origins: Sequence[ModuleRow]) -> Cause:
    first = origins[0]
    if first.forward_overflow is None:
        kind = CauseKind.FORWARD_INPUT
    else:
        kind = CauseKind.FORWARD_FP16 if first.dtype == "float16" else CauseKind.FORWARD_NOT_FP16
    culprits = [row.module for row in origins[:MAX_CULPRITS]]
    return Cause(kind, culprits, first, fp32_candidates=[first.module])


def _backward(seen: Observations, first: ModuleRow) -> Cause:
    before = in_order(seen.rows, "backward_order", until=first.first_overflow or 0)
    # The module itself may be among them, by another of its outputs or on another rank.
    finite = [row for row in before if row.module != first.module and not _contains(row.module, first.module)]
    candidates = [first.module]
    if finite:
        # The module before it in backward order computed that gradient, or an operation between the two did.
        source = finite[-1].module
        candidates.append(source)
        parent = first.module.rpartition(".")[0]
        if parent and parent == source.rpartition(".")[0] and any(row.module == parent for row in seen.rows):
            candidates = [parent]
    return Cause(CauseKind.BACKWARD, [first.module], first, finite, candidates)


def in_order(rows: Iterable[ModuleRow], order: str, until: float = math.inf) -> list[ModuleRow]:
    """Return the rows whose field ``order`` is below ``until``, sorted by it. Rows without it are left out."""
    found = [row for row in rows if (at := getattr(row, order)) is not None and at < until]
    return sorted(found, key=lambda row: getattr(row, order))


def _innermost(rows: Sequence[ModuleRow]) -> list[ModuleRow]:
    """Leave out modules that contain an earlier one."""
    return [row for at, row in enumerate(rows) if not any(_contains(row.module, inner.module) for inner in rows[:at])]


def _contains(outer: str, inner: str) -> bool:
    return inner != outer and (not outer or inner.startswith(f"{outer}."))


def _owners(seen: Observations, parameters: Iterable[str]) -> list[str]:
    """Return the modules that hold ``parameters``, in backward order, at most three."""
    orders = {row.module: row.backward_order or 0 for row in seen.rows}
    owners = dict.fromkeys(name.rpartition(".")[0] for name in parameters)
    return sorted(owners, key=lambda module: orders.get(module, 0))[:MAX_CULPRITS]
