# SPDX-License-Identifier: Apache-2.0
"""What was sampled, a problem a line, so that a killed run loses no more than the batch it was at.

Beside it stands what it was sampled with: a run with other settings is refused, not mixed in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fp16_patch import files
from fp16_patch.errors import Fp16PatchError

_OPTIONS = "vllm_options"
"""Beside the settings, and never compared: how vLLM runs, and not what is asked of it."""


@dataclass(frozen=True)
class Sampled:
    """The answers to the problem of that key, their lengths in tokens, and how many were cut off at the limit."""

    key: str
    answers: tuple[str, ...]
    tokens: tuple[int, ...]
    cut_off: int


@dataclass(frozen=True)
class Answers:
    """A folder with ``settings.json`` and ``answers.jsonl``."""

    folder: Path

    @property
    def settings_file(self) -> Path:
        return self.folder / "settings.json"

    @property
    def file(self) -> Path:
        return self.folder / "answers.jsonl"

    def settings(self) -> dict[str, Any] | None:
        """What was sampled with; None where nothing was yet. Raises ``Fp16PatchError`` where nobody can tell."""
        if next(iter(self), None) is None:
            return None
        try:
            found = json.loads(self.settings_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise Fp16PatchError(
                f"{self.file} holds answers, and {self.settings_file} does not tell what they were sampled with",
                code="answers-of-unknown-settings",
                next_step=f"bring it back; or choose another --out; or remove {self.folder}, and sample anew",
            )
        return found

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Stamp the folder, or check its stamp. Raises ``Fp16PatchError`` naming the settings that differ."""
        self._drop_half_a_line()
        before = self.settings()
        if before is None:
            self._stamp({**settings, _OPTIONS: []})
            return
        keys = [key for key in {**before, **settings} if key != _OPTIONS]
        if different := [key for key in keys if before.get(key) != settings.get(key)]:
            told = ", ".join(f"{key}: {before.get(key)!r} there, {settings.get(key)!r} now" for key in different)
            raise Fp16PatchError(
                f"{self.folder} was sampled with other settings: {told}",
                code="answers-of-other-settings",
                allowed="the same settings, to go on; another --reward, --keep, --limit or --vllm is none of them",
                next_step="choose another --out",
            )

    def options(self) -> list[dict[str, Any]]:
        """Every set of further arguments of ``vllm.LLM`` that answers here were sampled with."""
        return list((self.settings() or {}).get(_OPTIONS, []))

    def sampled_with(self, options: Mapping[str, object]) -> None:
        """The batch to come was sampled with these. Recorded before it, so that no answer is without."""
        stamp = json.loads(self.settings_file.read_text(encoding="utf-8"))
        if options not in (before := stamp.setdefault(_OPTIONS, [])):
            self._stamp({**stamp, _OPTIONS: [*before, options]})

    def append(self, batch: Sequence[Sampled]) -> None:
        """Add a batch; it is on the disk when this returns. Raises ``Fp16PatchError`` where it cannot be."""
        with (
            files.wrap_os_errors(self.file, "make room; the same command goes on from the batch before"),
            self.file.open("a", encoding="utf-8") as file,
        ):
            file.write("".join(json.dumps(asdict(sampled)) + "\n" for sampled in batch))
            file.flush()
            os.fsync(file.fileno())

    def __iter__(self) -> Iterator[Sampled]:
        """All there are, in the order of sampling. Raises ``Fp16PatchError`` naming a line that cannot be read."""
        if not self.file.exists():
            return
        with self.file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    yield Sampled(row["key"], tuple(row["answers"]), tuple(row["tokens"]), row["cut_off"])
                except (ValueError, KeyError, TypeError) as error:
                    raise Fp16PatchError(
                        f"{self.file}, line {number}, cannot be read: {error}",
                        code="file-damaged",
                        next_step="remove that line: its problem is then sampled again, and no other",
                    ) from error

    def _stamp(self, settings: Mapping[str, Any]) -> None:
        files.write_atomically(self.settings_file, json.dumps(settings, indent=2) + "\n")

    def _drop_half_a_line(self) -> None:
        """What a process that was killed while it wrote has left at the end."""
        if not self.file.exists():
            return
        with self.file.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            while end and _byte_before(file, end) != b"\n":
                end -= 1
            file.truncate(end)


def _byte_before(file: Any, end: int) -> bytes:
    file.seek(end - 1)
    return bytes(file.read(1))
