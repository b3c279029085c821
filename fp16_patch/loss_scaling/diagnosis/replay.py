# SPDX-License-Identifier: Apache-2.0
"""Trace one pass of a batch, write its report, and stop a run whose updates are skipped again and again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fp16_patch.log import logger
from fp16_patch.loss_scaling.diagnosis.advice import Diagnosis, Fallbacks
from fp16_patch.loss_scaling.diagnosis.format import scale_history
from fp16_patch.loss_scaling.diagnosis.observations import Trace, observe
from fp16_patch.loss_scaling.diagnosis.report import render, save
from fp16_patch.loss_scaling.scaler_base import ScalerBase
from fp16_patch.loss_scaling.skip_limit import diverged, exceeded_limit
from fp16_patch.loss_scaling.update import Update
from fp16_patch.precision import reports_folder


@dataclass(frozen=True)
class Replay:
    """Trace passes of one engine. Every method is collective over the scaler's process group."""

    scaler: ScalerBase
    trace: Callable[[], AbstractContextManager[Trace]]
    """Observes the modules while it is open."""
    role: str = "model"
    """Whose updates they are, in reports and errors."""
    fallbacks: Fallbacks = field(default_factory=Fallbacks)
    extra_pass: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Open during each traced pass. It leaves no gradients if the pass is not part of the training."""

    def trace_if_due(self, trace_update: int | None, run: Callable[[], object]) -> bool:
        """Trace ``run`` and write its report if ``trace_update``, counted from 1, is the next update.

        Return whether it ran.
        """
        if trace_update != self.scaler.counts.updates + 1:
            return False
        stem = f"trace_of_update_{trace_update}_{self.role}"
        _, path = self._diagnose(run, f"update {trace_update} was to be traced", stem)
        logger.info("gradients of update %s traced: %s", trace_update, path)
        return True

    def stop_after_too_many(self, update: Update, run: Callable[[], object] | None) -> None:
        """Raise if ``update`` was skipped, and with it more than ``max_consecutive_skips`` or ``max_skip_rate`` allow.

        ``run`` repeats its forward and backward pass, for the report; None if no batch was kept.

        Raises:
            Fp16PatchError: The run must stop; raised on every rank.
        """
        limit = exceeded_limit(self.scaler.rule) if update.skipped else None
        if limit is None:
            return
        scale = f"the loss scale is {self.scaler.get_scale():g}"
        if run is None:
            found = self.scaler.bad_loss.detail if self.scaler.bad_loss else "unknown, as no batch was kept"
            advice = (
                f"look for inf or NaN in the loss and in the batch; the scale went {scale_history(self.scaler.history)}"
            )
            raise diverged(limit, self.role, f"{scale}; modules that overflowed first: {found}", advice)
        with self.scaler.at_scale(update.loss_scale):
            diagnosis, path = self._diagnose(run, limit.reason, f"overflow_report_{self.role}")
        found = ", ".join(diagnosis.cause.culprits) or "none in this batch"
        if diagnosis.observations.bad_loss is not None:
            found += f"; its loss is not finite before it is scaled: {diagnosis.observations.bad_loss.detail}"
        advice = f"{'; '.join(diagnosis.advice)}. Read {path} on rank 0's node"
        raise diverged(limit, self.role, f"{scale}; modules that overflowed first: {found}", advice)

    def _diagnose(self, run: Callable[[], object], reason: str, stem: str) -> tuple[Diagnosis, Path]:
        with self.extra_pass():
            diagnosis = Diagnosis(observe(self.trace, self.scaler, run, reason), self.fallbacks)
        folder = reports_folder()
        if not dist.is_initialized() or dist.get_rank() == 0:
            save(diagnosis, folder, stem)
            print(f"\n{render(diagnosis)}\n", flush=True)
        return diagnosis, folder / f"{stem}.txt"
