# SPDX-License-Identifier: Apache-2.0
"""Trace one pass of a batch, write its report, and stop a run whose updates are skipped again and again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fp16_patch.errors import Fp16PatchError
from fp16_patch.log import logger
from fp16_patch.loss_scaling.diagnosis.advice import Diagnosis, Fallbacks
from fp16_patch.loss_scaling.diagnosis.format import scale_history
from fp16_patch.loss_scaling.diagnosis.observations import Trace, observe
from fp16_patch.loss_scaling.diagnosis.report import render, save
from fp16_patch.loss_scaling.scaler_base import ScalerBase
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
        """Raise if ``update`` is the last of ``max_consecutive_skips`` skipped updates in a row.

        ``run`` repeats its forward and backward pass, for the report; None if no batch was kept.

        Raises:
            Fp16PatchError: The run must stop; raised on every rank.
        """
        skips = self.scaler.counts.consecutive
        if not update.skipped or skips < self.scaler.settings.max_consecutive_skips:
            return
        reason = f"{skips} updates in a row were skipped"
        if run is None:
            scales = scale_history(self.scaler.history)
            advice = f"look for inf or NaN in the loss and in the batch; the scale went {scales}"
            raise self._error(reason, "unknown, as no batch was kept", advice)
        with self.scaler.at_scale(update.loss_scale):
            diagnosis, path = self._diagnose(run, reason, f"overflow_report_{self.role}")
        culprits = ", ".join(diagnosis.cause.culprits) or "none in this batch"
        raise self._error(reason, culprits, f"{'; '.join(diagnosis.advice)}. Read {path} on rank 0's node")

    def _diagnose(self, run: Callable[[], object], reason: str, stem: str) -> tuple[Diagnosis, Path]:
        with self.extra_pass():
            diagnosis = Diagnosis(observe(self.trace, self.scaler, run, reason), self.fallbacks)
        folder = reports_folder()
        if not dist.is_initialized() or dist.get_rank() == 0:
            save(diagnosis, folder, stem)
            print(f"\n{render(diagnosis)}\n", flush=True)
        return diagnosis, folder / f"{stem}.txt"

    def _error(self, reason: str, culprits: str, advice: str) -> Fp16PatchError:
        limit = self.scaler.settings.max_consecutive_skips
        return Fp16PatchError(
            f"{self.role}: {reason} (fp16_patch.loss_scaling.max_consecutive_skips={limit}), the loss scale is "
            f"{self.scaler.get_scale():g}; modules that overflowed first: {culprits}",
            code="training-diverged",
            allowed=f"at least one finite update in every {limit}",
            next_step=f"{advice}; the last checkpoint is untouched",
        )
