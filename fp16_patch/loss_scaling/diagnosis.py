# SPDX-License-Identifier: Apache-2.0
"""Why updates are skipped: one batch run again with every module watched, and what to try."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from fp16_patch.loss_scaling.rule import Counts
from fp16_patch.loss_scaling.settings import LossScaling
from fp16_patch.loss_scaling.statistics import FP16_MAX
from fp16_patch.loss_scaling.trace import (
    Extremes,
    ModuleRow,
    gather,
    local,
    merge_rows,
    plain_name,
    tensors_in,
    trace_modules,
)
from fp16_patch.precision_islands import KEY

FORMAT = "fp16_patch.overflow_report/1"
SUSPECTS = 3
SHOWN, SHOWN_BEFORE = 20, 6
"""Modules in the text report, and how many of them come before the first one that overflowed."""
BITS = 3
"""How far below a scale that overflows to start: below the limit, with two bits of room if it was missed by one."""
BF16 = "train in BF16: +precision@_global_=bf16"
"""The last resort, in verl's words."""


@dataclass(frozen=True)
class Losses:
    """The losses that went through the scaler, on all ranks."""

    peak: float | None = None
    """Largest finite magnitude, before scaling."""
    nonfinite: bool = False
    scaled_nonfinite: bool = False
    """After scaling."""


@dataclass(frozen=True)
class Diagnosis:
    """What one traced pass showed; the same on every rank. Gradients are multiplied by ``loss_scale``."""

    reason: str
    """Why it was made: ``"20 updates in a row were skipped"``."""
    loss_scale: float
    """The scale of the traced pass."""
    settings: Mapping[str, float | int]
    """``LossScaling.as_dict()``."""
    history: Sequence[tuple[int, float]]
    """(updates so far, scale from then on), oldest first."""
    counts: Mapping[str, int]
    rows: Sequence[ModuleRow]
    losses: Losses = field(default_factory=Losses)
    parameters: Mapping[str, float] = field(default_factory=dict)
    """Parameter -> share of inf and NaN in its gradient, where there are any."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Parameter -> share of inf and NaN in itself, where there are any."""
    torch_version: str = torch.__version__
    in_bf16: str = BF16
    """The last advice: how this framework is told to train in BF16."""

    @property
    def case(self) -> str:
        """``"weights"``, ``"forward"``, ``"loss"``, ``"backward"`` or ``"nothing"``: where it began."""
        return self._finding.case

    @property
    def cause(self) -> str:
        """One sentence, without a full stop."""
        return self._finding.cause

    @property
    def suspects(self) -> list[str]:
        """Names of the modules that overflowed first, at most three; none where no module is to blame."""
        return self._finding.suspects

    @property
    def advice(self) -> list[str]:
        """What to try, the most promising first; no full stops."""
        return self._finding.advice

    @cached_property
    def _finding(self) -> Finding:
        return _find(self)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, without inf or NaN."""
        found = self._finding
        return {
            "format": FORMAT,
            "reason": self.reason,
            **asdict(found),
            "loss_scale": self.loss_scale,
            "settings": dict(self.settings),
            "counts": dict(self.counts),
            "history": [list(entry) for entry in self.history],
            "losses": asdict(self.losses),
            "parameters": dict(self.parameters),
            "weights": dict(self.weights),
            "modules": [asdict(row) for row in self.rows],
            "torch": self.torch_version,
        }

    def render(self) -> str:
        """For a terminal."""
        title = f"fp16_patch overflow report: {self.reason}"
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        lines = [
            title,
            "-" * len(title),
            f"found: {self.cause}",
            f"traced at loss scale {_power(self.loss_scale)}; {counts}; torch {self.torch_version}",
            f"scale: {_history(self.history)}",
            *([f"gradients with inf or NaN: {_parameters(self.parameters)}"] if self.parameters else []),
            "",
            *_table(self),
            "",
            *(f"headroom: {line}" for kind in ("gradient", "activation") if (line := _room(self.rows, kind))),
            "what to try:",
            *(f"  {number}. {line}" for number, line in enumerate(self.advice, 1)),
        ]
        return "\n".join(line.rstrip() for line in lines)


class Scaler(Protocol):
    """What a diagnosis needs of a loss scaler; :class:`LossScaler` is one."""

    process_group: Any

    @property
    def settings(self) -> LossScaling: ...
    @property
    def counts(self) -> Counts: ...
    @property
    def history(self) -> Iterable[tuple[int, float]]: ...
    def get_scale(self) -> float: ...
    def scale(self, outputs: Any) -> Any: ...


Watched = Mapping[str, tuple[Extremes, int]]
"""Parameter -> what was seen of this rank's part of it, or of its gradient, and the elements of that part."""


def diagnose(
    module: torch.nn.Module,
    scaler: Scaler,
    run: Callable[[], object],
    reason: str,
    *,
    gradients: Callable[[], Watched] | None = None,
    weights: Callable[[], Watched] | None = None,
    in_bf16: str = BF16,
) -> Diagnosis:
    """Trace one pass: ``run`` does forward and backward of one batch, its loss through ``scaler.scale``.

    Collective over the scaler's process group. Adds to the gradients that ``module`` has; neither gradients nor
    random state are put back. ``gradients`` and ``weights`` are asked after the pass, where a framework keeps them
    elsewhere than in ``module``'s parameters.
    """
    with trace_modules(module) as trace, _watched_losses(scaler) as losses:
        run()
    group = scaler.process_group
    everyone = gather([(extremes.peak, extremes.bad > 0) for extremes in losses], group)
    peaks = [peak for (peak, _), _ in everyone if peak is not None]
    return Diagnosis(
        reason=reason,
        loss_scale=scaler.get_scale(),
        settings=scaler.settings.as_dict(),
        history=list(scaler.history),
        counts=asdict(scaler.counts),
        rows=merge_rows(trace.rows(), group),
        losses=Losses(
            peak=max(peaks, default=None),
            nonfinite=any(before for (_, before), _ in everyone),
            scaled_nonfinite=any(after for _, (_, after) in everyone),
        ),
        parameters=_shares(gradients() if gradients else _held(module, lambda parameter: parameter.grad), group),
        weights=_shares(weights() if weights else _held(module, lambda parameter: parameter), group),
        in_bf16=in_bf16,
    )


@contextmanager
def _watched_losses(scaler: Any) -> Iterator[tuple[Extremes, Extremes]]:
    """The losses before and after ``scaler.scale``."""
    before, after = Extremes(), Extremes()
    scale = scaler.scale

    def watched(outputs: Any) -> Any:
        scaled = scale(outputs)
        for extremes, losses in ((before, outputs), (after, scaled)):
            for loss in tensors_in(losses):
                extremes.add(loss)
        return scaled

    scaler.scale = watched
    try:
        yield before, after
    finally:
        del scaler.scale


def parameter_overflow(module: torch.nn.Module, group: Any = None) -> dict[str, float]:
    """Parameter -> share of inf and NaN in its gradient over all ranks of ``group``, where there are any; collective.

    Gradients as they lie after the backward pass. A rank without a gradient has no inf or NaN in it.
    """
    return _shares(_held(module, lambda parameter: parameter.grad), group)


def _held(module: torch.nn.Module, part: Callable[[Any], torch.Tensor | None]) -> Watched:
    watched: dict[str, tuple[Extremes, int]] = {}
    for name, parameter in module.named_parameters():
        extremes = Extremes()
        if (held := part(parameter)) is not None:
            extremes.add(held)
        watched[plain_name(name)] = (extremes, local(parameter).numel())
    return watched


def _shares(watched: Watched, group: Any) -> dict[str, float]:
    bad: dict[str, int] = {}
    elements: dict[str, int] = {}
    for one_rank in gather({name: (extremes.bad, total) for name, (extremes, total) in watched.items()}, group):
        for name, (count, total) in one_rank.items():
            bad[name] = bad.get(name, 0) + count
            elements[name] = elements.get(name, 0) + total
    return {name: count / elements[name] for name, count in bad.items() if count}


def save(diagnosis: Diagnosis, folder: str | Path, stem: str = "overflow_report") -> Path:
    """Write ``<stem>.json`` and ``<stem>.txt`` into ``folder``; return the text's path. Nobody reads half a file."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    document = json.dumps(diagnosis.as_dict(), indent=2, allow_nan=False)
    for ending, text in (("json", document), ("txt", diagnosis.render())):
        partial = target / f".{stem}.{ending}.{os.getpid()}"
        partial.write_text(text + "\n")
        os.replace(partial, target / f"{stem}.{ending}")
    return target / f"{stem}.txt"


# What the traced pass means. Five places where it can begin, asked for in the order of the pass itself.

LOOK_AT_THE_LOSS = "look at advantages, rewards, log-probs and the loss mask of this batch"


@dataclass(frozen=True)
class Finding:
    case: str
    cause: str
    suspects: list[str]
    advice: list[str]


def _find(seen: Diagnosis) -> Finding:
    overflowed = _in_order(seen.rows, "first_overflow")
    losses = seen.losses
    if seen.weights:
        return _bad_weights(seen)
    if not (overflowed or seen.parameters or losses.scaled_nonfinite):
        return _nothing(seen)
    # A loss that the model itself computes is no overflow of its modules.
    origins = [row for row in _in_order(seen.rows, "forward_overflow") if row.module or not losses.nonfinite]
    tainted = [row for row in _in_order(seen.rows, "forward_order") if row.module and row.activation_nonfinite]
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
    cause = f"weights are inf or NaN already: {_parameters(seen.weights)}"
    advice = "no precision and no loss scale helps: resume from a checkpoint whose weights are finite"
    return Finding("weights", cause, _modules_of(seen, seen.weights), [advice])


def _nothing(seen: Diagnosis) -> Finding:
    cause = f"nothing overflows in this batch at loss scale {_power(seen.loss_scale)}"
    if bad := [row.module for row in seen.rows if row.activation_nonfinite]:
        cause += f"; the inf or NaN in the output of {_called(bad[0])} reaches no gradient"
    if not seen.counts["consecutive"]:
        return Finding("nothing", cause, [], ["nothing to do"])
    again = seen.in_bf16 if _at_floor(seen) else _lower_scale(seen)
    gone = "the overflow is gone at this scale, or came with other data: resume from the last checkpoint"
    return Finding("nothing", cause, [], [gone, f"if it comes back: {again}"])


def _forward(seen: Diagnosis, origins: Sequence[ModuleRow]) -> Finding:
    first, name = origins[0], _called(origins[0].module)
    cause = f"{_percent(first.activation_nonfinite)} of the output of {name} ({first.class_name}) is inf or NaN"
    if first.forward_overflow is None:
        cause = f"the forward pass begins with inf or NaN: {cause}, and so are its inputs"
        advice = [f"precision is not the cause: look at what goes into {name} in this batch"]
    elif first.dtype != "float16":
        cause = f"the forward pass overflows, but not in FP16: {cause}, of {first.dtype}, and its inputs are finite"
        advice = [f"look at the inputs and weights of {name}"]
    else:
        cause = f"the forward pass overflows: {cause}, and its inputs are finite"
        advice = ["no loss scale helps: activations are not scaled", *_in_fp32(seen, [first.module]), seen.in_bf16]
    return Finding("forward", cause, [row.module for row in origins[:SUSPECTS]], advice)


def _loss_gradient(seen: Diagnosis, overflowed: Sequence[ModuleRow]) -> Finding:
    suspects = [row.module for row in overflowed[:1]]
    cause = "the loss is finite, and overflows when it is multiplied by the scale"
    if not seen.losses.scaled_nonfinite:
        cause = (
            "the first gradient of the backward pass, that of the loss with respect to the output of "
            f"{_called(suspects[0])}, is inf or NaN; the activations are finite"
        )
    unsure = [] if seen.losses.peak is not None else [f"the loss may be inf or NaN: {LOOK_AT_THE_LOSS}"]
    certain = [LOOK_AT_THE_LOSS] if _at_floor(seen) and not unsure else []
    return Finding(
        "loss", cause, suspects, [*unsure, _lower_scale(seen), *certain, *_in_fp32(seen, suspects), seen.in_bf16]
    )


def _backward(seen: Diagnosis, first: ModuleRow) -> Finding:
    until = first.first_overflow or 0
    finite = [row for row in _in_order(seen.rows, "backward_order", until) if not _contains(row.module, first.module)]
    cause = (
        f"the backward pass overflows at loss scale {_power(seen.loss_scale)}: {_percent(first.gradient_nonfinite)} of "
        f"the gradient that arrives at the output of {_called(first.module)} ({first.class_name}) is inf or NaN"
    )
    concerned = [first.module]
    if finite:
        # That gradient is the work of the module before it in backward order, or of what lies between the two.
        source = finite[-1].module
        cause += f", the one before it, of {_called(source)}, is finite"
        concerned.append(source)
        parent = first.module.rpartition(".")[0]
        if parent and parent == source.rpartition(".")[0] and any(row.module == parent for row in seen.rows):
            concerned = [parent]
    room = f" ({line})" if (line := _room(finite, "gradient")) else ""
    return Finding(
        "backward", cause, [first.module], [_lower_scale(seen) + room, *_in_fp32(seen, concerned), seen.in_bf16]
    )


def _parameter_gradients(seen: Diagnosis) -> Finding:
    suspects = _modules_of(seen, seen.parameters)
    cause = (
        f"every gradient between modules is finite at loss scale {_power(seen.loss_scale)}, "
        f"the gradients of parameters are not: {_parameters(seen.parameters)}"
    )
    return Finding("backward", cause, suspects, [_lower_scale(seen), *_in_fp32(seen, suspects), seen.in_bf16])


def _at_floor(seen: Diagnosis) -> bool:
    return seen.loss_scale <= seen.settings["min_scale"]


def _lower_scale(seen: Diagnosis) -> str:
    floor = seen.settings["min_scale"]
    if _at_floor(seen):
        return f"the loss scale is at min_scale={_power(floor)} already, there is no lower one to start with"
    start = max(seen.loss_scale / 2**BITS, floor)
    bits = math.log2(seen.loss_scale / start)
    return f"start {bits:g} bits lower: fp16_patch.loss_scaling.init_scale={_power(start)}"


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
    """As :func:`~fp16_patch.precision_islands.find_islands` wants it: without what PEFT and trl put around it."""
    plain = module.removeprefix("base_model.model.").removeprefix("pretrained_model.")
    return re.sub(r"\.(base_layer|lora_\w+)(\..*)?$", "", plain)


def _in_order(rows: Iterable[ModuleRow], order: str, until: float = math.inf) -> list[ModuleRow]:
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


# In words and numbers.


def _called(module: str) -> str:
    return module or "the model itself"


def _parameters(shares: Mapping[str, float]) -> str:
    some = [f"{name} ({_percent(share)})" for name, share in list(shares.items())[:SUSPECTS]]
    more = len(shares) - len(some)
    return ", ".join(some) + (f" and {more} more" if more else "")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"


def _power(scale: float) -> str:
    """All digits: rounded ones are no power of two."""
    return str(int(scale)) if scale >= 1 else repr(scale)


def _history(history: Sequence[tuple[int, float]]) -> str:
    entries = [f"{_power(scale)} after {updates}" if updates else _power(scale) for updates, scale in history]
    if len(entries) > 8:
        entries = [*entries[:3], f"({len(entries) - 7} more)", *entries[-4:]]
    return " -> ".join(entries)


def _room(rows: Iterable[ModuleRow], kind: str) -> str:
    """``"largest finite gradient 812 in model.norm, 6.3 bits below 65504"``; empty where FP16 computed nothing."""
    peaks = [(getattr(row, f"{kind}_peak"), row.module) for row in rows if row.dtype == "float16"]
    peak, module = max(((peak, module) for peak, module in peaks if peak), default=(None, ""))
    if peak is None:
        return ""
    return f"largest finite {kind} {peak:.4g} in {_called(module)}, {math.log2(FP16_MAX / peak):.1f} bits below 65504"


def _table(seen: Diagnosis) -> list[str]:
    order, overflow = (
        ("forward_order", "forward_overflow") if seen.case == "forward" else ("backward_order", "first_overflow")
    )
    rows = _in_order(seen.rows, order)
    begins = next((at for at, row in enumerate(rows) if getattr(row, overflow) is not None), None)
    if begins is None:
        rows = sorted(seen.rows, key=lambda row: -max(row.gradient_peak or 0, row.activation_peak or 0))[:SHOWN]
        title = "modules, largest peaks first"
    else:
        rows = rows[max(begins - SHOWN_BEFORE, 0) :][:SHOWN]
        title = f"modules in {order.removesuffix('_order')} order"
    table = [[title, "class", "dtype", "activation peak", "inf/NaN", "gradient peak", "inf/NaN", ""]]
    for row in rows:
        table.append(
            [
                _called(row.module),
                row.class_name,
                row.dtype,
                _peak(row.activation_peak),
                _percent(row.activation_nonfinite or None),
                _peak(row.gradient_peak),
                _percent(row.gradient_nonfinite or None),
                "<- first" if row.module in seen.suspects else "",
            ]
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    left_out = len(seen.rows) - len(rows)
    return [*lines, f"({left_out} more modules in the JSON file)"] if left_out else lines


def _peak(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
