# SPDX-License-Identifier: Apache-2.0
"""Find the question and the answer in a row of any dataset.

Recognized by their columns: MATH and its variants (problem, solution with the answer in a box), GSM8K (answer after
####), AIME (problem, answer), math_12k (problem, answer), DAPO-Math-17k and any other dataset in verl's format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.data.problem import Message

QUESTIONS = ("problem", "question", "prompt", "input", "instruction")
ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth", "label", "solution")
"""Columns of the question and of the answer, in order of preference; case does not matter."""
WORKED = ANSWERS[-1]
"""The column of MATH's worked solutions, which hold an answer only if they mark one."""

_DAPO = re.compile(
    r"Solve the following math problem step by step\. .*?\n\n(?P<question>.*)\n\n"
    r'Remember to put your answer on its own line after "Answer:"\.',
    re.DOTALL,
)
"""DAPO's datasets request a line "Answer:", which a reward that reads boxes would not find."""


@dataclass(frozen=True)
class Columns:
    """Name the columns to read, instead of the known ones."""

    question: str | None = None
    answer: str | None = None


def question_and_answer(row: Mapping[str, Any], columns: Columns) -> tuple[str | tuple[Message, ...], str]:
    """Return the question, or the row's whole prompt, and the answer; "" for a missing one.

    Raises:
        Fp16PatchError: If there is no such column; names the columns of the row.
    """
    _, question = _cell(row, columns.question, QUESTIONS, "--question-key")
    verl = row.get("reward_model") if columns.answer is None else None
    truth = verl.get("ground_truth") if isinstance(verl, Mapping) else None
    if truth is not None:
        return _question(question), _answer(truth)
    name, truth = _cell(row, columns.answer, ANSWERS, "--answer-key")
    return _question(question), _answer(truth, worked=columns.answer is None and name == WORKED)


def extract_answer(text: str) -> str:
    r"""Return the contents of the last ``\boxed{}``, else the text after the last ``####``, else the whole text."""
    return text.strip() if (marked := _marked(text)) is None else marked


def last_boxed(text: str) -> str | None:
    r"""Return the contents of the last ``\boxed{}`` or ``\fbox{}`` with balanced braces, or None."""
    starts = [match.end() for match in re.finditer(r"\\f?box(?:ed)?\s*\{", text)]
    if not starts:
        return None
    depth = 1
    for end in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[starts[-1] : end]
    return None


def _marked(text: str) -> str | None:
    if (boxed := last_boxed(text)) is not None:
        return boxed.strip()
    if "####" in text:
        return text.rpartition("####")[2].strip().replace(",", "")
    return None


def _question(cell: Any) -> str | tuple[Message, ...]:
    if isinstance(cell, str):
        return cell.strip()
    if not isinstance(cell, list) or not cell or not all(map(_is_message, cell)):
        return ""
    messages = tuple(Message(turn["role"], turn["content"]) for turn in cell)
    text = messages[-1].content
    if len(messages) == 1 and (dapo := _DAPO.fullmatch(text.strip())):
        return dapo["question"].strip()
    return messages


def _is_message(turn: Any) -> bool:
    texts = [turn.get("role"), turn.get("content")] if isinstance(turn, Mapping) else [None]
    return all(isinstance(text, str) and text.strip() for text in texts)


def _answer(cell: Any, *, worked: bool = False) -> str:
    if not isinstance(cell, (str, int, float)) or cell != cell:  # pandas writes a missing number as NaN
        return ""
    return (_marked(str(cell)) or "") if worked else extract_answer(str(cell))


def _cell(row: Mapping[str, Any], wanted: str | None, known: tuple[str, ...], option: str) -> tuple[str, Any]:
    there = {name.lower(): name for name in row}
    if names := [name for name in ([wanted] if wanted else known) if name.lower() in there]:
        cells = [(name, row[there[name.lower()]]) for name in names]
        return next((cell for cell in cells if cell[1] is not None), cells[0])
    raise Fp16PatchError(
        f"no column {wanted or ' or '.join(known)} in the dataset: it has {', '.join(row)}",
        code="column-not-found",
        next_step=f"name the column with {option}",
    )
