# SPDX-License-Identifier: Apache-2.0
"""Describe a cause in words, and advise what to try."""

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
from fp16_patch.loss_scaling.loss_check import BadLoss

BITS = 3
"""Bits by which to lower an overflowing scale: one to get below the limit, two to spare."""
PLAIN_NAME = re.compile(r"(?!(true|false|null|inf|nan)$)[a-z_]\w*(\.\w+)*", re.IGNORECASE)
"""What Hydra reads as text without quotes."""
WRAPPER_LEVELS = re.compile(r"^(base_model\.model\.)?(pretrained_model\.)?|\.(base_layer|lora_\w+)(\..*)?$")
"""What PEFT and trl add to module names. :func:`~fp16_patch.fp32_modules.find_fp32_modules` takes names without."""
TRAINER_ONLY = (
    f"{KEY} changes the trainer only: an FP16 rollout still computes these modules in FP16, and the same activation "
    "overflows there"
)
CHECK_THE_LOSS = "look at advantages, rewards, log-probs and the loss mask of this batch"
_REFERENCE = "the log-probs of the reference model"
_TRAINER = "the trainer's log-probs before the update: the weights may not be finite"
_NO_TOKENS = "the answers of this batch: none has a token that counts"
LOOK_AT = {
    "advantages": "the rewards of this batch, and the baseline and deviation that advantages are computed with",
    "returns": "the rewards of this batch, and the values that returns are computed from",
    "values": "the critic's values of this batch, and its last updates",
    "rollout_is_weights": "the log-probs of the rollout, which importance weights are computed from",
    "rollout_log_probs": "the log-probs of the rollout: its activations may overflow",
    **dict.fromkeys(("old_log_probs", "action_log_probs"), _TRAINER),
    **dict.fromkeys(("ref_log_prob", "base_action_log_probs"), _REFERENCE),
    **dict.fromkeys(("response_mask", "action_mask"), _NO_TOKENS),
}
"""Input of the loss, as verl or OpenRLHF names it -> where to look if it is not finite, or empty."""
NOT_PRECISION = "precision is not the cause: no loss scale, no FP32 module and no BF16 helps"


@dataclass(frozen=True)
class Fallbacks:
    """What the framework offers if no loss scale helps."""

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
        """What to try, most promising first; no full stops."""

    def _advise(self) -> list[str]:
        seen, cause = self.observations, self.cause
        lower, fallbacks = self._lower_scale(), self._fallbacks()
        culprit = module_label(cause.culprits[0]) if cause.culprits else ""
        gone = "the overflow is gone at this scale, or came with other data: resume from the last checkpoint"
        after_skips = [gone, f"if it comes back: {self.fallbacks.in_bf16 if self._at_floor() else lower}"]
        of_scaled_loss = [lower, *([CHECK_THE_LOSS] if self._at_floor() else []), *fallbacks]
        if seen.losses.peak is None:
            of_scaled_loss = [f"the loss may be inf or NaN: {CHECK_THE_LOSS}", lower, *fallbacks]
        headroom = headroom_line(cause.finite_before, "gradient")
        of_gradients = [f"{lower} ({headroom})" if headroom else lower, *fallbacks]
        advice = {
            CauseKind.WEIGHTS: ["no precision or loss scale helps: resume from a checkpoint whose weights are finite"],
            CauseKind.NOTHING: after_skips if seen.counts["consecutive"] else ["nothing to do"],
            CauseKind.FORWARD_INPUT: [f"precision is not the cause: look at what goes into {culprit} in this batch"],
            CauseKind.FORWARD_NOT_FP16: [f"look at the inputs and weights of {culprit}"],
            CauseKind.FORWARD_FP16: ["no loss scale helps: activations are not scaled", *fallbacks],
            CauseKind.LOSS: [where_to_look(seen.bad_loss), NOT_PRECISION],
            CauseKind.SCALED_LOSS: of_scaled_loss,
            CauseKind.LOSS_GRADIENT: of_scaled_loss,
            CauseKind.BACKWARD: of_gradients,
            CauseKind.PARAMETERS: of_gradients,
        }
        return advice[cause.kind]

    def _at_floor(self) -> bool:
        return self.observations.loss_scale <= self.observations.settings["min_scale"]

    def _lower_scale(self) -> str:
        scale, floor = self.observations.loss_scale, self.observations.settings["min_scale"]
        if self._at_floor():
            return f"the loss scale is at min_scale={exact_scale(floor)} already: it cannot start lower"
        start = max(scale / 2**BITS, floor)
        return f"start {math.log2(scale / start):g} bits lower: fp16_patch.loss_scaling.init_scale={exact_scale(start)}"

    def _fallbacks(self) -> list[str]:
        names = self._fp32_names() if self.fallbacks.fp32_modules else []
        in_fp32 = [f"keep {' and '.join(names)} in FP32: {fp32_override(names)}"] if names else []
        if in_fp32 and self.cause.kind is CauseKind.FORWARD_FP16:
            in_fp32.append(TRAINER_ONLY)
        return [*in_fp32, self.fallbacks.in_bf16]

    def _fp32_names(self) -> list[str]:
        """Return the candidates as the flag names them, or the smallest modules with parameters that contain them."""
        rows = {row.module: row for row in self.observations.rows}
        names: list[str] = []
        for module in self.cause.fp32_candidates:
            if module in rows and rows[module].dtype != "float16":
                continue
            while module and not (module in rows and rows[module].has_parameters):
                module = module.rpartition(".")[0]
            names.append(WRAPPER_LEVELS.sub("", module))
        return [name for name in dict.fromkeys(names) if name]


def where_to_look(bad_loss: BadLoss | None) -> str:
    """Return where to look for the reason of a loss that is not finite."""
    source = bad_loss.source if bad_loss else ""
    return f"look at {LOOK_AT[source]}" if source in LOOK_AT else CHECK_THE_LOSS


def _summarize(seen: Observations, cause: Cause) -> str:
    scale, first = exact_scale(seen.loss_scale), cause.first
    culprit = module_label(cause.culprits[0]) if cause.culprits else ""
    unused = [module_label(row.module) for row in seen.rows if row.activation_nonfinite]
    note = f"; the inf or NaN in the output of {unused[0]} reaches no gradient" if unused else ""
    output = gradient = dtype = ""
    if first:
        module, dtype = f"{module_label(first.module)} ({first.class_name})", first.dtype
        output = f"{percent(first.activation_nonfinite)} of the output of {module} is inf or NaN"
        gradient = f"{percent(first.gradient_nonfinite)} of the gradient of the output of {module} is inf or NaN"
    output_only = f"{output}, and its inputs are finite"
    if cause.finite_before:
        gradient += f"; the one before it, of {module_label(cause.finite_before[-1].module)}, is finite"
    summaries = {
        CauseKind.WEIGHTS: f"weights are inf or NaN already: {format_shares(seen.weights)}",
        CauseKind.NOTHING: f"nothing overflows in this batch at loss scale {scale}{note}",
        CauseKind.FORWARD_INPUT: f"the forward pass begins with inf or NaN: {output}, and so are its inputs",
        CauseKind.FORWARD_NOT_FP16: f"the forward pass overflows in {dtype}, not in FP16: {output_only}",
        CauseKind.FORWARD_FP16: f"the forward pass overflows: {output_only}",
        CauseKind.LOSS: "the loss itself is inf or NaN, before it is scaled; the activations are finite"
        + (f"; {seen.bad_loss.detail}" if seen.bad_loss else ""),
        CauseKind.SCALED_LOSS: "the loss is finite, and overflows when it is multiplied by the scale",
        CauseKind.LOSS_GRADIENT: f"the gradient of the loss with respect to the output of {culprit}, the first of the "
        "backward pass, is inf or NaN; the activations are finite",
        CauseKind.BACKWARD: f"the backward pass overflows at loss scale {scale}: {gradient}",
        CauseKind.PARAMETERS: f"every gradient between modules is finite at loss scale {scale}, "
        f"the gradients of parameters are not: {format_shares(seen.parameters)}",
    }
    return summaries[cause.kind]


def fp32_override(names: Iterable[str]) -> str:
    """Return ``fp16_patch.fp32_modules=[...]`` for a shell. Names that Hydra would not read as text are quoted."""
    listed = ",".join(name if PLAIN_NAME.fullmatch(name) else f'"{name}"' for name in names)
    override = f"{KEY}=[{listed}]"
    return shlex.quote(override) if '"' in override else override
