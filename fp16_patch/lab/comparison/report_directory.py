# SPDX-License-Identifier: Apache-2.0
"""The files of a report: they take their places together once all are written, and replace no others than a report's.

A page and a JSON file tell by what is in them whether they are a report's; pictures are one's where one of these is.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fp16_patch import files
from fp16_patch.errors import Fp16PatchError

DATA, PAGE = "report.json", "report.html"
PICTURES = tuple(
    f"{name}.png" for name in ("figure", "overview", "prob_diff", "kl", "pi_minus_mu", "loss_scale", "offline")
)
TITLE = " - fp16_patch</title>"
"""How the title of every page ends."""
_OF_RUNS = ({"headline", "arms"}, {"runs", "differences"})
"""Keys of the JSON file: over one run, over several."""


def check(out: Path) -> None:
    """Raises :class:`Fp16PatchError` where a report in ``out`` would take the place of somebody's files."""
    if out.exists() and not out.is_dir():
        raise Fp16PatchError(f"--out {out} is no folder", code="output-in-the-way", next_step="choose another --out")
    ours = {name for name, holds in ((DATA, _is_data), (PAGE, _is_page)) if holds(out / name)}
    known = {*ours, *PICTURES} if ours else ours
    if foreign := [name for name in (DATA, PAGE, *PICTURES) if name not in known and (out / name).exists()]:
        raise Fp16PatchError(
            f"--out {out} holds {', '.join(foreign)}, not of a report that was written here, and its own would take "
            "the place",
            code="output-in-the-way",
            next_step="move what is there away, or choose another --out",
        )


@contextlib.contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A folder to write a report in, which is moved into ``out`` at the end; until then nothing changes there.

    Raises :class:`Fp16PatchError` as :func:`check` does, and where ``out`` cannot be written to.
    """
    check(out)
    room = "choose a folder you can write to, with room for a few megabytes"
    with files.wrap_os_errors(f"--out {out}: the report cannot be written", room):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=out) as aside:
            yield Path(aside)
            # The data first: it tells whose the pictures are, should we be killed between two files.
            for file in sorted(Path(aside).iterdir(), key=lambda file: file.name != DATA):
                assert file.name in (DATA, PAGE, *PICTURES), f"{file.name} is not looked for before it is written"
                file.replace(out / file.name)


def _is_data(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and any(keys <= content.keys() for keys in _OF_RUNS)


def _is_page(file: Path) -> bool:
    try:
        return TITLE in file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
