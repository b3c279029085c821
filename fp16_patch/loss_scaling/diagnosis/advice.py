# SPDX-License-Identifier: Apache-2.0
"""A cause in words, and what to try."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from fp16_patch.fp32_modules import KEY
from fp16_patch.loss_scaling.diagnosis.cause import Cause, CauseKind, find_cause
from fp16_patch.loss_scaling.diagnosis.format import exact_scale, format_shares, headroom_line, module_label, percent
from fp16_patch.loss_scaling.diagnosis.observations import Observations

BITS = 3
"""Bits below an overflowing scale to start at: one below the limit, and two to spare if it was missed by one."""
CHECK_THE_LOSS = "look at advantages, rewards, log-probs and the loss mask of this batch"


@dataclass(frozen=True)
class Fallbacks:
    """What the framework offers where no loss scale helps."""

    in_bf16: str = "train in BF16"
    """How to train everything in BF16."""
    fp32_modules: bool = True
    """Whether single modules can be kept in FP32."""


class Diagnosis:
    """Observations of one pass, their cause, and the advice; the same on every rank."""

    def __init__(self, observations: Observations, fallbacks: Fallbacks | None = None) -> None:
        self.observations = observations
        self.cause = find_cause(observations)
        self.fallbacks = fallbacks or Fallbacks()
        self.summary = _summarize(observations, self.cause)
        """One sentence, without a full stop."""
        self.advice = self._advise()
        """What to try, the most promising first; no full stops."""

    def _advise(self) -> list[str]:
        seen, culprits = self.observations, self.cause.culprits
        lower, fallbacks = self._lower_scale(), self._fallbacks()
        kind = self.cause.kind
        if kind is CauseKind.WEIGHTS:
            return ["no precision and no loss scale helps: resume from a checkpoint whose weights are finite"]
        if kind is CauseKind.NOTHING:
            if not seen.counts["consecutive"]:
                return ["nothing to do"]
            again = self.fallbacks.in_bf16 if self._at_floor() else lower
            gone = "the overflow is gone at this scale, or came with other data: resume from the last checkpoint"
            return [gone, f"if it comes back: {again}"]
        if kind is CauseKind.FORWARD_INPUT:
            return [f"precision is not the cause: look at what goes into {module_label(culprits[0])} in this batch"]
        if kind is CauseKind.FORWARD_NOT_FP16:
            return [f"look at the inputs and weights of {module_label(culprits[0])}"]
        if kind is CauseKind.FORWARD_FP16:
            return ["no loss scale helps: activations are not scaled", *fallbacks]
        if kind is CauseKind.LOSS:
            return [CHECK_THE_LOSS, "precision is not the cause: no loss scale, no FP32 module and no BF16 helps"]
        if kind in (CauseKind.SCALED_LOSS, CauseKind.LOSS_GRADIENT):
            if seen.losses.peak is None:
                return [f"the loss may be inf or NaN: {CHECK_THE_LOSS}", lower, *fallbacks]
            return [lower, *([CHECK_THE_LOSS] if self._at_floor() else []), *fallbacks]
        if line := headroom_line(self.cause.finite_before, "gradient"):
            lower += f" ({line})"
        return [lower, *fallbacks]

    def _at_floor(self) -> bool:
        return self.observations.loss_scale <= self.observations.settings["min_scale"]

    def _lower_scale(self) -> str:
        scale, floor = self.observations.loss_scale, self.observations.settings["min_scale"]
        if self._at_floor():
            return f"the loss scale is at min_scale={exact_scale(floor)} already, there is no lower one to start with"
        start = max(scale / 2**BITS, floor)
        return f"start {math.log2(scale / start):g} bits lower: fp16_patch.loss_scaling.init_scale={exact_scale(start)}"

    def _fallbacks(self) -> list[str]:
        names = self._fp32_names() if self.fallbacks.fp32_modules else []
        in_fp32 = [f"keep {' and '.join(names)} in FP32: {fp32_override(names)}"] if names else []
        return [*in_fp32, self.fallbacks.in_bf16]

    def _fp32_names(self) -> list[str]:
        """Return the candidates, or the smallest modules with parameters around them, as the flag names them."""
        rows = {row.module: row for row in self.observations.rows}
        names: list[str] = []
        for module in self.cause.fp32_candidates:
            if module in rows and rows[module].dtype != "float16":
                continue
            while module and not (module in rows and rows[module].has_parameters):
                module = module.rpartition(".")[0]
            names.append(_name_for_the_flag(module))
        return [name for name in dict.fromkeys(names) if name]


def _summarize(seen: Observations, cause: Cause) -> str:
    scale, first = exact_scale(seen.loss_scale), cause.first
    if cause.kind is CauseKind.WEIGHTS:
        return f"weights are inf or NaN already: {format_shares(seen.weights)}"
    if cause.kind is CauseKind.NOTHING:
        bad = [row.module for row in seen.rows if row.activation_nonfinite]
        note = f"; the inf or NaN in the output of {module_label(bad[0])} reaches no gradient" if bad else ""
        return f"nothing overflows in this batch at loss scale {scale}{note}"
    if cause.kind is CauseKind.LOSS:
        return "the loss itself is inf or NaN, before it is scaled; the activations are finite"
    if cause.kind is CauseKind.SCALED_LOSS:
        return "the loss is finite, and overflows when it is multiplied by the scale"
    if cause.kind is CauseKind.LOSS_GRADIENT:
        return (
            "the first gradient of the backward pass, that of the loss with respect to the output of "
            f"{module_label(cause.culprits[0])}, is inf or NaN; the activations are finite"
        )
    if first is None:
        return (
            f"every gradient between modules is finite at loss scale {scale}, "
            f"the gradients of parameters are not: {format_shares(seen.parameters)}"
        )
    module = f"{module_label(first.module)} ({first.class_name})"
    if cause.kind is CauseKind.BACKWARD:
        before = cause.finite_before
        source = f", the one before it, of {module_label(before[-1].module)}, is finite" if before else ""
        return (
            f"the backward pass overflows at loss scale {scale}: {percent(first.gradient_nonfinite)} of "
            f"the gradient that arrives at the output of {module} is inf or NaN{source}"
        )
    output = f"{percent(first.activation_nonfinite)} of the output of {module} is inf or NaN"
    if cause.kind is CauseKind.FORWARD_INPUT:
        return f"the forward pass begins with inf or NaN: {output}, and so are its inputs"
    if cause.kind is CauseKind.FORWARD_NOT_FP16:
        return f"the forward pass overflows, but not in FP16: {output}, of {first.dtype}, and its inputs are finite"
    return f"the forward pass overflows: {output}, and its inputs are finite"


def fp32_override(names: Iterable[str]) -> str:
    """Return ``fp16_patch.fp32_modules=[...]`` for a shell; names that Hydra would not read as text are quoted."""
    listed = ",".join(
        name if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name) and not _is_literal(name) else f'"{name}"' for name in names
    )
    override = f"{KEY}=[{listed}]"
    return shlex.quote(override) if '"' in override else override


def _is_literal(name: str) -> bool:
    return name.lower() in ("true", "false", "null", "inf", "nan")


def _name_for_the_flag(module: str) -> str:
    """Remove what PEFT and trl add, as :func:`~fp16_patch.fp32_modules.find_fp32_modules` does."""
    plain = module.removeprefix("base_model.model.").removeprefix("pretrained_model.")
    return re.sub(r"\.(base_layer|lora_\w+)(\..*)?$", "", plain)
