# SPDX-License-Identifier: Apache-2.0
"""Store sampled answers, one problem per line, so that a killed run loses only the current batch.

The sampling settings are stored with them. A run with other settings is refused.
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
"""Key of vLLM's options. They are stored with the settings but not compared: they do not define the samples."""


@dataclass(frozen=True)
class Sampled:
    """Hold one problem's answers, their lengths in tokens, and how many were cut off at the token limit."""

    key: str
    answers: tuple[str, ...]
    tokens: tuple[int, ...]
    cut_off: int


class SampleStore:
    """Store samples in a folder with ``settings.json`` and ``answers.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.settings_file, self.file = folder, folder / "settings.json", folder / "answers.jsonl"

    def settings(self) -> dict[str, Any] | None:
        """Return the settings of the stored samples; None if there are no samples.

        Raises:
            Fp16PatchError: If the settings cannot be read.
        """
        if next(iter(self), None) is None:
            return None
        try:
            found = json.loads(self.settings_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise Fp16PatchError(
                f"{self.file} holds answers, but {self.settings_file} does not hold their sampling settings",
                code="answers-of-unknown-settings",
                next_step=f"restore it, choose another --out, or remove {self.folder} to sample again",
            )
        return found

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Record the settings, or compare them with those recorded.

        Raises:
            Fp16PatchError: If settings differ; names them.
        """
        self._drop_partial_line()
        before = self.settings()
        if before is None:
            self._stamp({**settings, _OPTIONS: []})
            return
        keys = [key for key in {**before, **settings} if key != _OPTIONS]
        if different := [key for key in keys if before.get(key) != settings.get(key)]:
            differences = ", ".join(f"{key}: {before.get(key)!r} there, {settings.get(key)!r} now" for key in different)
            raise Fp16PatchError(
                f"{self.folder} was sampled with other settings: {differences}",
                code="answers-of-other-settings",
                allowed="the same settings, to resume; --reward, --keep, --limit and --vllm may differ",
                next_step="choose another --out",
            )

    def recorded_options(self) -> list[dict[str, Any]]:
        """Return every set of ``--vllm`` options that the answers were sampled with."""
        return list((self.settings() or {}).get(_OPTIONS, []))

    def record_options(self, options: Mapping[str, object]) -> None:
        """Record the ``--vllm`` options of the next batch, before its answers are appended."""
        stamp = json.loads(self.settings_file.read_text(encoding="utf-8"))
        if options not in (before := stamp.setdefault(_OPTIONS, [])):
            self._stamp({**stamp, _OPTIONS: [*before, options]})

    def append(self, batch: Sequence[Sampled]) -> None:
        """Append a batch and flush it to disk.

        Raises:
            Fp16PatchError: If it cannot be written.
        """
        with (
            files.wrap_os_errors(self.file, "free disk space; the same command resumes after the previous batch"),
            self.file.open("a", encoding="utf-8") as file,
        ):
            file.write("".join(json.dumps(asdict(sampled)) + "\n" for sampled in batch))
            file.flush()
            os.fsync(file.fileno())

    def __iter__(self) -> Iterator[Sampled]:
        """Yield the samples in the order of sampling.

        Raises:
            Fp16PatchError: If a line cannot be read; names it.
        """
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
                        next_step="remove that line: only its problem is then sampled again",
                    ) from error

    def _stamp(self, settings: Mapping[str, Any]) -> None:
        files.write_atomically(self.settings_file, json.dumps(settings, indent=2) + "\n")

    def _drop_partial_line(self) -> None:
        if self.file.exists():
            with self.file.open("rb+") as file:
                file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))
