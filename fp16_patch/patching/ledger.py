# SPDX-License-Identifier: Apache-2.0
"""Record the outcome of each patch in this process. The driver collects the ledger of every process."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from fp16_patch.patching.patch import Outcome


@dataclass(frozen=True)
class LedgerEntry:
    """One patch. ``version`` is None if its distribution is not installed; ``process`` names the kinds that need it."""

    name: str
    target: str
    outcome: Outcome
    version: str | None
    message: str
    process: str


@dataclass
class Ledger:
    """The patches of one process.

    Thread-safe without a lock, which a fork might leave held: each method is one operation on a dict.
    """

    host: str = field(default_factory=lambda: os.uname().nodename)
    pid: int = field(default_factory=os.getpid)
    _entries: dict[str, LedgerEntry] = field(default_factory=dict, repr=False)

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """Return the entries in the order in which they were first recorded."""
        return tuple(self._entries.values())

    def get(self, name: str) -> LedgerEntry | None:
        """Return the entry of a patch; None if it has none."""
        return self._entries.get(name)

    def record(self, entry: LedgerEntry) -> LedgerEntry:
        """Add or overwrite an entry, and return it."""
        self._entries[entry.name] = entry
        return entry

    def remove(self, name: str) -> None:
        """Remove the entry of a patch, if any."""
        self._entries.pop(name, None)

    def as_dict(self) -> dict[str, Any]:
        """Return the ledger, ready for JSON."""
        return {"host": self.host, "pid": self.pid, "entries": [asdict(entry) for entry in self.entries]}


current = Ledger()
"""The ledger of this process."""

os.register_at_fork(after_in_child=lambda: setattr(current, "pid", os.getpid()))
