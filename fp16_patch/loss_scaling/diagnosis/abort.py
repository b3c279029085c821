# SPDX-License-Identifier: Apache-2.0
"""The end of a run whose updates are skipped for ever: its report and its error, the same in every framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling.diagnosis.observations import Diagnosis, Scaler
from fp16_patch.loss_scaling.diagnosis.report import render, save
from fp16_patch.precision import reports_folder


def reason_to_stop(scaler: Scaler, skipped: bool) -> str | None:
    """Why the run must end after its last update, None where it need not."""
    if not skipped or scaler.counts.consecutive < scaler.settings.max_consecutive_skips:
        return None
    return f"{scaler.counts.consecutive} updates in a row were skipped"


def publish(diagnosis: Diagnosis, stem: str, *, write: bool) -> Path:
    """Where the report is; with ``write`` (on one rank) it is written, and printed."""
    folder = reports_folder()
    if write:
        save(diagnosis, folder, stem)
        print(f"\n{render(diagnosis)}\n", flush=True)
    return folder / f"{stem}.txt"


def stop(role: str, scaler: Scaler, diagnosis: Diagnosis, path: Path) -> Fp16PatchError:
    """The error that ends the run; ``role`` is whose updates they were."""
    where = ", ".join(diagnosis.suspects) or "none in this batch"
    advice = "; ".join(diagnosis.advice)
    return _stop(role, scaler, diagnosis.reason, where, f"{advice}. Read {path} on rank 0's node; ")


def stop_unseen(role: str, scaler: Scaler, reason: str) -> Fp16PatchError:
    """As :func:`stop`, where no batch can be run again."""
    scales = " -> ".join(f"{scale:g}" for _, scale in list(scaler.history)[-8:])
    advice = f"look for inf or NaN in the loss and in the batch; the scale went {scales}; "
    return _stop(role, scaler, reason, "not looked for, no batch was kept", advice)


def _stop(role: str, scaler: Any, reason: str, where: str, advice: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"{role}: {reason} (fp16_patch.loss_scaling.max_consecutive_skips={scaler.settings.max_consecutive_skips}), "
        f"the loss scale is {scaler.get_scale():g}; modules that overflowed first: {where}",
        code="training-diverged",
        allowed="an update at least now and then",
        next_step=f"{advice}the last checkpoint is untouched",
    )
