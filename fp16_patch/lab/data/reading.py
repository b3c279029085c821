# SPDX-License-Identifier: Apache-2.0
"""Read a dataset as problems: each once, with its answer, in the order of the dataset."""

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
class DatasetSpec:
    """Name a dataset and how its questions become prompts. Without ``template``, prompts in the dataset are kept."""

    source: Source
    template: str | None = None
    columns: Columns = field(default_factory=Columns)

    def __post_init__(self) -> None:
        if self.template is not None:
            templates.check(self.template)


@dataclass
class ReadResult:
    """Hold the problems, and count the rows that were left out.

    ``repeated`` rows have the prompt of an earlier row.
    """

    problems: list[Problem] = field(default_factory=list)
    revision: str | None = None
    repeated: int = 0
    without_question: int = 0
    without_answer: int = 0

    @property
    def rows(self) -> int:
        """Return the number of rows read."""
        return len(self.problems) + self.repeated + self.without_question + self.without_answer

    def __str__(self) -> str:
        left_out = [
            (self.repeated, "repeated"),
            (self.without_question, "without a question"),
            (self.without_answer, "without an answer"),
        ]
        counts = [f"{count} rows {why} left out" for count, why in left_out if count]
        return ", ".join([f"{len(self.problems)} problems", *counts])


def read(dataset: DatasetSpec, limit: int | None = None) -> ReadResult:
    """Read at most ``limit`` problems.

    Raises:
        Fp16PatchError: If the dataset is missing, cannot be read, or holds no problem.
    """
    rows, revision = dataset.source.open()
    found = ReadResult(revision=revision)
    for problem in itertools.islice(_distinct(dataset, rows, found), limit):
        found.problems.append(problem)
    if not found.problems and not found.rows:
        raise Fp16PatchError(
            f"--dataset {dataset.source.name} has no row", code="dataset-empty", next_step="download or write it again"
        )
    if not found.problems:
        split, columns = dataset.source.effective_split, "the columns with --question-key and --answer-key"
        raise Fp16PatchError(
            f"--dataset {dataset.source.name}{f', split {split},' if split else ''} holds no problem: {found}",
            code="dataset-without-problems",
            next_step=f"name another --split, or {columns}" if split else f"name {columns}",
        )
    return found


def _distinct(dataset: DatasetSpec, rows: Iterator[dict[str, object]], found: ReadResult) -> Iterator[Problem]:
    seen: set[tuple[Message, ...]] = set()
    for row in rows:
        question, answer = question_and_answer(row, dataset.columns)
        if not question:
            found.without_question += 1
        elif not answer:
            found.without_answer += 1
        elif (prompt := _prompt(question, dataset.template)) in seen:
            found.repeated += 1
        else:
            seen.add(prompt)
            yield Problem(prompt, answer, str(row.get("data_source") or dataset.source.name))


def _prompt(question: str | tuple[Message, ...], template: str | None) -> tuple[Message, ...]:
    if isinstance(question, str):
        return templates.prompt(question, template or templates.DEFAULT)
    return question if template is None else templates.prompt(question[-1].content, template)
