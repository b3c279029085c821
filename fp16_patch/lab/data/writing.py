# SPDX-License-Identifier: Apache-2.0
"""Write problems as the frameworks read them: parquet for verl's RLHFDataset, JSONL for OpenRLHF."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fp16_patch.lab.data.problem import Problem


def write(folder: Path, name: str, problems: Sequence[Problem], rates: Sequence[float] = ()) -> None:
    """Write ``NAME.parquet`` and ``NAME.jsonl``, the same problems in the same order."""
    write_parquet(folder / f"{name}.parquet", name, problems, rates)
    write_jsonl(folder / f"{name}.jsonl", problems)


def write_parquet(path: Path, split: str, problems: Sequence[Problem], rates: Sequence[float] = ()) -> None:
    """Write one row per problem; ``rates`` (0 to 1), if given, go to ``extra_info`` as ``solve_rate``."""
    import pyarrow
    from pyarrow import parquet

    rows: list[dict[str, Any]] = [
        {
            "data_source": problem.source,
            "prompt": problem.messages,
            "ability": problem.ability,
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"split": split, "index": index},
        }
        for index, problem in enumerate(problems)
    ]
    for row, rate in zip(rows, rates, strict=bool(rates)):
        row["extra_info"]["solve_rate"] = rate
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_jsonl(path: Path, problems: Sequence[Problem]) -> None:
    """Write one line per problem, for ``--data.input_key input --data.label_key label``.

    ``input`` is the text of the user message. If any problem has several messages, ``input`` is a list of messages in
    every line, for ``--data.apply_chat_template``.
    """
    chats = any(len(problem.prompt) > 1 for problem in problems)
    lines = [
        json.dumps({"input": problem.messages if chats else problem.prompt[0].content, "label": problem.answer}) + "\n"
        for problem in problems
    ]
    path.write_text("".join(lines), encoding="utf-8")
