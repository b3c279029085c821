# SPDX-License-Identifier: Apache-2.0
"""Write the files of a report together, and replace only files of an earlier report.

The content of report.json and report.html tells whether a report wrote them. Pictures next to one of these are its own.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from fp16_patch import files
from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.staged_files import staged_files

DATA, PAGE = "report.json", "report.html"
PICTURES = tuple(
    f"{name}.png" for name in ("figure", "overview", "prob_diff", "kl", "pi_minus_mu", "loss_scale", "offline")
)
TITLE = " - fp16_patch</title>"
"""End of the title of every report.html."""
_REPORT_KEYS = ({"headline", "arms"}, {"runs", "differences"})
"""Keys of report.json over one run, and over several."""


def check_output(out: Path) -> None:
    """Check that a report in ``out`` would not replace files that no report wrote.

    Raises:
        Fp16PatchError: It would, or ``out`` is not a folder.
    """
    if out.exists() and not out.is_dir():
        raise Fp16PatchError(f"--out {out} is not a folder", code="output-in-the-way", next_step="choose another --out")
    ours = {name for name, holds in ((DATA, _is_data), (PAGE, _is_page)) if holds(out / name)}
    known = {*ours, *PICTURES} if ours else ours
    if foreign := [name for name in (DATA, PAGE, *PICTURES) if name not in known and (out / name).exists()]:
        raise Fp16PatchError(
            f"--out {out} holds {', '.join(foreign)}, which no report wrote and this one would replace",
            code="output-in-the-way",
            next_step="move these files away, or choose another --out",
        )


@contextlib.contextmanager
def atomic_report_dir(out: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files are moved into ``out`` at the end. Until then ``out`` does not change.

    Raises:
        Fp16PatchError: As :func:`check_output`, or ``out`` cannot be written.
    """
    check_output(out)
    next_step = "choose a writable folder with a few free megabytes"
    cannot_write = files.wrap_os_errors(f"--out {out}: the report cannot be written", next_step)
    with cannot_write, staged_files(out, DATA) as folder:  # report.json marks the pictures as ours
        yield folder
        unknown = {file.name for file in folder.iterdir()} - {DATA, PAGE, *PICTURES}
        assert not unknown, f"check_output does not look for {unknown}"


def _is_data(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and any(keys <= content.keys() for keys in _REPORT_KEYS)


def _is_page(file: Path) -> bool:
    try:
        return TITLE in file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
