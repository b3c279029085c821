# SPDX-License-Identifier: Apache-2.0
"""A dataset as problems: each one once, with its answer, in the order of the dataset."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.data import templates
from fp16_patch.lab.data.fields import Columns, question_and_answer
from fp16_patch.lab.data.problem import Message, Problem
from fp16_patch.lab.data.source import Source


@dataclass(frozen=True)
class Wanted:
    """Which dataset, and how its questions are put. Without ``template`` prompts that the dataset has are kept."""

    source: Source
    template: str | None = None
    columns: Columns = field(default_factory=Columns)

    def __post_init__(self) -> None:
        if self.template is not None:
            templates.check(self.template)


@dataclass
class Read:
    """``repeated`` rows ask what an earlier one asked; of others, question or answer is missing: none is a problem."""

    problems: list[Problem] = field(default_factory=list)
    revision: str | None = None
    repeated: int = 0
    unasked: int = 0
    unanswered: int = 0

    @property
    def rows(self) -> int:
        return len(self.problems) + self.repeated + self.unasked + self.unanswered

    def __str__(self) -> str:
        left_out = [
            (self.repeated, "repeated"),
            (self.unasked, "without a question"),
            (self.unanswered, "without an answer"),
        ]
        told = [f"{count} rows {why} left out" for count, why in left_out if count]
        return ", ".join([f"{len(self.problems)} problems", *told])


def read(wanted: Wanted, limit: int | None = None) -> Read:
    """At most ``limit`` problems. Raises ``Fp16PatchError`` where there is none."""
    rows, revision = wanted.source.open()
    found = Read(revision=revision)
    for problem in itertools.islice(_distinct(wanted, rows, found), limit):
        found.problems.append(problem)
    if not found.problems and not found.rows:
        raise Fp16PatchError(
            f"--dataset {wanted.source.name} has no row", code="dataset-empty", next_step="fetch or write it again"
        )
    if not found.problems:
        split, columns = wanted.source.part, "the columns with --question-key and --answer-key"
        raise Fp16PatchError(
            f"--dataset {wanted.source.name}{f', split {split},' if split else ''} holds no problem: {found}",
            code="dataset-without-problems",
            next_step=f"name another --split, or {columns}" if split else f"name {columns}",
        )
    return found


def _distinct(wanted: Wanted, rows: Iterator[dict[str, object]], found: Read) -> Iterator[Problem]:
    seen: set[tuple[Message, ...]] = set()
    for row in rows:
        question, answer = question_and_answer(row, wanted.columns)
        if not question:
            found.unasked += 1
        elif not answer:
            found.unanswered += 1
        elif (prompt := _prompt(question, wanted.template)) in seen:
            found.repeated += 1
        else:
            seen.add(prompt)
            yield Problem(prompt, answer, str(row.get("data_source") or wanted.source.name))


def _prompt(question: str | tuple[Message, ...], template: str | None) -> tuple[Message, ...]:
    if isinstance(question, str):
        return templates.prompt(question, template or templates.DEFAULT)
    return question if template is None else templates.prompt(question[-1].content, template)
