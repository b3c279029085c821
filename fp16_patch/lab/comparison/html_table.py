# SPDX-License-Identifier: Apache-2.0
"""A table of a report's page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

Rows = Iterable[Sequence[str]]


def html_table(head: Sequence[str], rows: Rows, *, mark_differences: bool = False) -> str:
    """``rows`` start with their name; with ``mark_differences`` those whose cells differ stand out."""
    lines = ["<tr>" + "".join(f"<th>{escape(text)}</th>" for text in head) + "</tr>"]
    for first, *cells in rows:
        kind = " class=differs" if mark_differences and len(set(cells)) > 1 else ""
        lines.append(f"<tr{kind}><td>{escape(first)}</td>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"
