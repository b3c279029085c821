# SPDX-License-Identifier: Apache-2.0
"""Count what both engines computed that is not a number, and what was done about it."""

from __future__ import annotations

from dataclasses import dataclass

from fp16_patch.lab.logs.series import Series

LABELS = {
    "rollout_non_finite_answers": "rollout: answers not finite",
    "rollout_non_finite_tokens": "rollout: tokens not finite",
    "rollout_non_finite_logits": "rollout: rows of logits not finite",
    "rollout_masked_answers": "rollout: answers masked",
    "rollout_changed_sampling": "rollout: changed sampling",
    "trainer_non_finite_tokens": "trainer: tokens not finite",
    "mismatch_non_finite_tokens": "mismatch: tokens left out, not finite",
    "loss_not_finite": "actor: updates with a loss not finite",
    "critic_loss_not_finite": "critic: updates with a loss not finite",
}
"""Series -> label in a report. Each is 0 in a healthy step."""
_TOTALS = {
    "loss_not_finite": "losses_not_finite_total",
    "critic_loss_not_finite": "critic_losses_not_finite_total",
}
"""Series that logs of earlier releases have as means, whose sum is not a count -> series that counts."""


@dataclass(frozen=True)
class HealthCount:
    """The count of one of :data:`LABELS` over a run, None if it was not logged, and the steps above 0."""

    total: float | None
    steps: int

    def __str__(self) -> str:
        where = f"in {self.steps} step{'s' * (self.steps != 1)}"
        return where if self.total is None else f"{self.total:.12g} {where}"


def count_health(series: Series) -> dict[str, HealthCount]:
    """Return the counts of a run that are above 0."""
    found = {}
    for name in LABELS:
        if above := [value for value in series.known(name) if value > 0]:
            total = next(reversed(series.known(_TOTALS[name])), None) if name in _TOTALS else sum(above)
            found[name] = HealthCount(total, len(above))
    return found
