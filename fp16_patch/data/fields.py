# SPDX-License-Identifier: Apache-2.0
"""Find question and answer in a row, whichever dataset it is of.

Known by their columns: MATH and its kin (problem, solution with the answer in a box), GSM8K (answer behind ####), AIME
(problem, answer), math_12k (problem, answer), DAPO-Math-17k and whatever else is in verl's format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fp16_patch.data.problem import Message
from fp16_patch.errors import Fp16PatchError

QUESTIONS = ("problem", "question", "prompt", "input", "instruction")
ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth", "label", "solution")
"""Columns in which a question, or an answer, is looked for, in this order; upper and lower case are one."""

_DAPO = re.compile(
    r"Solve the following math problem step by step\. .*?\n\n(?P<question>.*)\n\n"
    r'Remember to put your answer on its own line after "Answer:"\.',
    re.DOTALL,
)
"""DAPO's datasets ask for a line "Answer:", which a reward that looks for a box would never find."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read, where they are none of the known ones."""

    question: str | None = None
    answer: str | None = None


def question_and_answer(row: Mapping[str, Any], columns: Columns) -> tuple[str | tuple[Message, ...], str]:
    """The question, or the whole prompt where the row has one, and the answer, "" where the row leaves it empty.

    Raises ``Fp16PatchError`` naming the columns there are.
    """
    asked_for = _question(_cell(row, columns.question, QUESTIONS, "--question-key"))
    truth = (row.get("reward_model") or {}).get("ground_truth") if columns.answer is None else None
    if truth is None:
        truth = _cell(row, columns.answer, ANSWERS, "--answer-key")
    return asked_for, answer_in("" if truth is None else str(truth))


def answer_in(text: str) -> str:
    """What stands in the last ``\\boxed{}``, or behind the last ``####``; else the text itself."""
    if (boxed := last_boxed(text)) is not None:
        return boxed.strip()
    if "####" in text:
        return text.rpartition("####")[2].strip().replace(",", "")
    return text.strip()


def last_boxed(text: str) -> str | None:
    """The contents of the last ``\\boxed{}`` or ``\\fbox{}``, braces balanced; None where there is none."""
    starts = [match.end() for match in re.finditer(r"\\f?box(?:ed)?\s*\{", text)]
    if not starts:
        return None
    depth = 1
    for end in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[starts[-1] : end]
    return None


def _question(cell: Any) -> str | tuple[Message, ...]:
    if isinstance(cell, str):
        return cell.strip()
    messages = tuple(Message(turn["role"], turn["content"]) for turn in cell)
    text = messages[-1].content
    if len(messages) == 1 and (dapo := _DAPO.fullmatch(text.strip())):
        return dapo["question"].strip()
    return messages


def _cell(row: Mapping[str, Any], wanted: str | None, known: tuple[str, ...], option: str) -> Any:
    there = {name.lower(): name for name in row}
    for name in [wanted] if wanted else known:
        if name.lower() in there:
            return row[there[name.lower()]]
    raise Fp16PatchError(
        f"no column {wanted or ' or '.join(known)} in the dataset: it has {', '.join(row)}",
        next_step=f"name the column with {option}",
    )
