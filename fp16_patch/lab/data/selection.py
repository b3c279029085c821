# SPDX-License-Identifier: Apache-2.0
"""Select problems by solve rate, as the paper's sanity test does."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

KEEP = (0.2, 0.8)
"""The paper's range: solved in 20 to 80% of the samples, both included."""

SAMPLES = 40
"""The paper's number of samples per problem."""

P = TypeVar("P", bound=Hashable)


@dataclass
class Selection(Generic[P]):
    """Hold the solve rates (0 to 1) of all problems tried and the problems kept, both in the order of trial."""

    keep: tuple[float, float]
    rates: dict[P, float] = field(default_factory=dict)
    kept: list[P] = field(default_factory=list)

    def add(self, problem: P, solved: int, samples: int) -> None:
        """Add a problem with ``solved`` right answers out of ``samples``."""
        self.rates[problem] = rate = solved / samples
        if self.keep[0] <= rate <= self.keep[1]:
            self.kept.append(problem)

    def mean_rate(self, problems: Iterable[P] | None = None) -> float:
        """Return the mean solve rate of ``problems``, by default of all, to 4 decimals."""
        rates = [self.rates[p] for p in (self.rates if problems is None else problems)]
        return round(sum(rates) / len(rates), 4)

    def histogram(self) -> list[int]:
        """Count the problems tried with a solve rate in [0, 0.1), [0.1, 0.2) ... [0.9, 1]."""
        counts = [0] * 10
        for rate in self.rates.values():
            counts[min(int(10 * rate), 9)] += 1
        return counts
