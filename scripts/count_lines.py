# SPDX-License-Identifier: Apache-2.0
"""Count lines of code without blanks, comments and docstrings: ``python scripts/count_lines.py [FOLDER ...]``."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def code_lines(text: str) -> int:
    """Return the number of lines of ``text`` that hold code."""
    lines: set[int] = set()
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main() -> None:
    """Print the count of each part of the package, and of its folders."""
    counts: Counter[str] = Counter()
    for file in sorted((ROOT / "fp16_patch").rglob("*.py")):
        parts = file.relative_to(ROOT / "fp16_patch").parts
        lab = parts[0] == "lab"
        lines = code_lines(file.read_text())
        counts["lab" if lab else "core"] += lines
        counts["/".join(parts[: 2 if lab or parts[0] in ("engines", "frameworks") else 1])] += lines
    for name, lines in sorted(counts.items()):
        print(f"{lines:6} {name}")


if __name__ == "__main__":
    main()
