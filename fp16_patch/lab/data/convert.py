# SPDX-License-Identifier: Apache-2.0
"""Write a dataset in the layouts that the frameworks read, and do nothing else with it."""

from __future__ import annotations

from collections.abc import Callable

from fp16_patch.lab.data.output import Output, dataset_facts
from fp16_patch.lab.data.reading import Wanted, read
from fp16_patch.lab.folder_lock import alone


def convert(wanted: Wanted, output: Output, *, limit: int | None = None, say: Callable[[str], None] = print) -> None:
    """Raises ``Fp16PatchError`` where the dataset is missing, or files of somebody else's are in the way."""
    output.check({"model": None, **wanted.source.facts()})
    found = read(wanted, limit)
    with alone(output.folder):
        output.write(found.problems, {"dataset": dataset_facts(wanted, found)})
    say(f"{found} of {wanted.source.name}: {output.parquet}, {output.jsonl}")
