# SPDX-License-Identifier: Apache-2.0
"""Format rows as a plain-text or a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence


def plain(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = False) -> str:
    """Return a table whose columns are aligned with spaces; with ``right`` all but the first to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    align = [str.ljust, *[str.rjust if right else str.ljust] * (len(header) - 1)]
    return "\n".join("  ".join(map(lambda pad, cell, n: pad(cell, n), align, line, widths)).rstrip() for line in lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a GitHub table with the pipes inside cells escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
