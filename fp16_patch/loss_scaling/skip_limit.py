# SPDX-License-Identifier: Apache-2.0
"""When too many updates were skipped for a run to go on. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling.scale_rule import ScaleRule


@dataclass(frozen=True)
class Exceeded:
    """A limit of skipped updates that was exceeded."""

    reason: str
    """What happened: ``"20 updates in a row were skipped"``."""
    setting: str
    """The setting that limits it, with its value."""
    allowed: str


def exceeded_limit(rule: ScaleRule) -> Exceeded | None:
    """Return the limit that the last update exceeded, if it was skipped; None if the run may go on."""
    settings, skips, recent = rule.settings, rule.counts.consecutive, len(rule.recent_skips)
    if not skips:
        return None
    if skips >= (limit := settings.max_consecutive_skips):
        return Exceeded(
            f"{skips} updates in a row were skipped",
            f"max_consecutive_skips={limit}",
            f"at least one finite update in every {limit}",
        )
    if recent > (limit := settings.max_skips_in_window):
        window = min(settings.skip_rate_window, rule.counts.updates)
        return Exceeded(
            f"{recent} of the last {window} updates were skipped",
            f"max_skip_rate={settings.max_skip_rate:g}",
            f"at most {limit} skipped updates in {settings.skip_rate_window}, the skip_rate_window",
        )
    return None


def diverged(limit: Exceeded, role: str, found: str, next_step: str) -> Fp16PatchError:
    """Return the error that ends the run. ``found`` says what is known about the reason."""
    return Fp16PatchError(
        f"{role}: {limit.reason} (fp16_patch.loss_scaling.{limit.setting}), {found}",
        code="training-diverged",
        allowed=limit.allowed,
        next_step=f"{next_step}; the last checkpoint is untouched",
    )
