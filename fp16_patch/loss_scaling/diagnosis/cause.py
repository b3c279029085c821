# SPDX-License-Identifier: Apache-2.0
"""What a traced pass means: where it began, which modules are to blame, and what to try.

Five places where it can begin, asked for in the order of the pass itself.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fp16_patch.fp32_modules import KEY
from fp16_patch.loss_scaling.diagnosis.format import called, percent, power, room, shares_of
from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow

if TYPE_CHECKING:
    from fp16_patch.loss_scaling.diagnosis.observations import Diagnosis

SUSPECTS = 3
BITS = 3
"""How far below a scale that overflows to start: below the limit, with two bits of room if it was missed by one."""


@dataclass(frozen=True)
class Remedies:
    """What the framework offers, in its own words."""

    in_bf16: str = "train in BF16"
    """The last resort."""
    fp32_modules: bool = True
    """Whether single modules can be kept in FP32."""


LOOK_AT_THE_LOSS = "look at advantages, rewards, log-probs and the loss mask of this batch"


@dataclass(frozen=True)
class Finding:
    case: str
    cause: str
    suspects: list[str]
    advice: list[str]


def find(seen: Diagnosis) -> Finding:
    overflowed = in_order(seen.rows, "first_overflow")
    losses = seen.losses
    if seen.weights:
        return _bad_weights(seen)
    if not (overflowed or seen.parameters or losses.scaled_nonfinite):
        return _nothing(seen)
    # A loss that the model itself computes is no overflow of its modules.
    origins = [row for row in in_order(seen.rows, "forward_overflow") if row.module or not losses.nonfinite]
    tainted = [row for row in in_order(seen.rows, "forward_order") if row.module and row.activation_nonfinite]
    if origins or tainted:
        return _forward(seen, _innermost(origins or tainted[:1]))
    if losses.nonfinite:
        helps = "precision is not the cause: no loss scale, no FP32 module and no BF16 helps"
        cause = "the loss itself is inf or NaN, before it is scaled; the activations are finite"
        return Finding("loss", cause, [], [LOOK_AT_THE_LOSS, helps])
    if losses.scaled_nonfinite or (overflowed and overflowed[0].first_overflow == 0):
        return _loss_gradient(seen, overflowed)
    return _backward(seen, overflowed[0]) if overflowed else _parameter_gradients(seen)


def _bad_weights(seen: Diagnosis) -> Finding:
    cause = f"weights are inf or NaN already: {shares_of(seen.weights)}"
    advice = "no precision and no loss scale helps: resume from a checkpoint whose weights are finite"
    return Finding("weights", cause, _modules_of(seen, seen.weights), [advice])


def _nothing(seen: Diagnosis) -> Finding:
    cause = f"nothing overflows in this batch at loss scale {power(seen.loss_scale)}"
    if bad := [row.module for row in seen.rows if row.activation_nonfinite]:
        cause += f"; the inf or NaN in the output of {called(bad[0])} reaches no gradient"
    if not seen.counts["consecutive"]:
        return Finding("nothing", cause, [], ["nothing to do"])
    again = seen.remedies.in_bf16 if _at_floor(seen) else _lower_scale(seen)
    gone = "the overflow is gone at this scale, or came with other data: resume from the last checkpoint"
    return Finding("nothing", cause, [], [gone, f"if it comes back: {again}"])


def _forward(seen: Diagnosis, origins: Sequence[ModuleRow]) -> Finding:
    first, name = origins[0], called(origins[0].module)
    cause = f"{percent(first.activation_nonfinite)} of the output of {name} ({first.class_name}) is inf or NaN"
    if first.forward_overflow is None:
        cause = f"the forward pass begins with inf or NaN: {cause}, and so are its inputs"
        advice = [f"precision is not the cause: look at what goes into {name} in this batch"]
    elif first.dtype != "float16":
        cause = f"the forward pass overflows, but not in FP16: {cause}, of {first.dtype}, and its inputs are finite"
        advice = [f"look at the inputs and weights of {name}"]
    else:
        cause = f"the forward pass overflows: {cause}, and its inputs are finite"
        advice = ["no loss scale helps: activations are not scaled", *_last_resorts(seen, [first.module])]
    return Finding("forward", cause, [row.module for row in origins[:SUSPECTS]], advice)


def _loss_gradient(seen: Diagnosis, overflowed: Sequence[ModuleRow]) -> Finding:
    suspects = [row.module for row in overflowed[:1]]
    cause = "the loss is finite, and overflows when it is multiplied by the scale"
    if not seen.losses.scaled_nonfinite:
        cause = (
            "the first gradient of the backward pass, that of the loss with respect to the output of "
            f"{called(suspects[0])}, is inf or NaN; the activations are finite"
        )
    unsure = [] if seen.losses.peak is not None else [f"the loss may be inf or NaN: {LOOK_AT_THE_LOSS}"]
    certain = [LOOK_AT_THE_LOSS] if _at_floor(seen) and not unsure else []
    return Finding("loss", cause, suspects, [*unsure, _lower_scale(seen), *certain, *_last_resorts(seen, suspects)])


def _backward(seen: Diagnosis, first: ModuleRow) -> Finding:
    until = first.first_overflow or 0
    # The module itself may be among them: another of its outputs, another rank's.
    before = [row for row in in_order(seen.rows, "backward_order", until) if row.module != first.module]
    finite = [row for row in before if not _contains(row.module, first.module)]
    cause = (
        f"the backward pass overflows at loss scale {power(seen.loss_scale)}: {percent(first.gradient_nonfinite)} of "
        f"the gradient that arrives at the output of {called(first.module)} ({first.class_name}) is inf or NaN"
    )
    concerned = [first.module]
    if finite:
        # That gradient is the work of the module before it in backward order, or of what lies between the two.
        source = finite[-1].module
        cause += f", the one before it, of {called(source)}, is finite"
        concerned.append(source)
        parent = first.module.rpartition(".")[0]
        if parent and parent == source.rpartition(".")[0] and any(row.module == parent for row in seen.rows):
            concerned = [parent]
    left = f" ({line})" if (line := room(finite, "gradient")) else ""
    return Finding("backward", cause, [first.module], [_lower_scale(seen) + left, *_last_resorts(seen, concerned)])


def _parameter_gradients(seen: Diagnosis) -> Finding:
    suspects = _modules_of(seen, seen.parameters)
    cause = (
        f"every gradient between modules is finite at loss scale {power(seen.loss_scale)}, "
        f"the gradients of parameters are not: {shares_of(seen.parameters)}"
    )
    return Finding("backward", cause, suspects, [_lower_scale(seen), *_last_resorts(seen, suspects)])


def _at_floor(seen: Diagnosis) -> bool:
    return seen.loss_scale <= seen.settings["min_scale"]


def _lower_scale(seen: Diagnosis) -> str:
    floor = seen.settings["min_scale"]
    if _at_floor(seen):
        return f"the loss scale is at min_scale={power(floor)} already, there is no lower one to start with"
    start = max(seen.loss_scale / 2**BITS, floor)
    bits = math.log2(seen.loss_scale / start)
    return f"start {bits:g} bits lower: fp16_patch.loss_scaling.init_scale={power(start)}"


def _last_resorts(seen: Diagnosis, modules: Iterable[str]) -> list[str]:
    """These modules in FP32 where the framework can do that, or everything in BF16."""
    return [*(_in_fp32(seen, modules) if seen.remedies.fp32_modules else []), seen.remedies.in_bf16]


def _in_fp32(seen: Diagnosis, modules: Iterable[str]) -> list[str]:
    """The override that keeps them in FP32, or the smallest modules with parameters around them; or nothing."""
    rows = {row.module: row for row in seen.rows}
    names: list[str] = []
    for module in modules:
        if module in rows and rows[module].dtype != "float16":
            continue
        while module and not (module in rows and rows[module].has_parameters):
            module = module.rpartition(".")[0]
        names.append(_name_for_the_flag(module))
    names = [name for name in dict.fromkeys(names) if name]
    return [f"keep {' and '.join(names)} in FP32: {fp32_override(names)}"] if names else []


def fp32_override(names: Iterable[str]) -> str:
    """``fp16_patch.fp32_modules=[...]`` for a shell; names that Hydra would not read as text are quoted."""
    listed = ",".join(
        name if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name) and not _word(name) else f'"{name}"' for name in names
    )
    override = f"{KEY}=[{listed}]"
    return shlex.quote(override) if '"' in override else override


def _word(name: str) -> bool:
    return name.lower() in ("true", "false", "null", "inf", "nan")


def _name_for_the_flag(module: str) -> str:
    """As :func:`~fp16_patch.fp32_modules.find_islands` wants it: without what PEFT and trl put around it."""
    plain = module.removeprefix("base_model.model.").removeprefix("pretrained_model.")
    return re.sub(r"\.(base_layer|lora_\w+)(\..*)?$", "", plain)


def in_order(rows: Iterable[ModuleRow], order: str, until: float = math.inf) -> list[ModuleRow]:
    found = [row for row in rows if (at := getattr(row, order)) is not None and at < until]
    return sorted(found, key=lambda row: getattr(row, order))


def _innermost(rows: Sequence[ModuleRow]) -> list[ModuleRow]:
    """Without modules that contain one that comes before them."""
    return [row for at, row in enumerate(rows) if not any(_contains(row.module, inner.module) for inner in rows[:at])]


def _contains(outer: str, inner: str) -> bool:
    return inner != outer and (not outer or inner.startswith(f"{outer}."))


def _modules_of(seen: Diagnosis, parameters: Iterable[str]) -> list[str]:
    """The modules that hold them, in backward order, at most three."""
    orders = {row.module: row.backward_order or 0 for row in seen.rows}
    owners = dict.fromkeys(name.rpartition(".")[0] for name in parameters)
    return sorted(owners, key=lambda module: orders.get(module, 0))[:SUSPECTS]
