# SPDX-License-Identifier: Apache-2.0
"""Convert a dataset to the files that the frameworks read."""

from __future__ import annotations

from collections.abc import Callable

from fp16_patch.lab.data.output import Output, dataset_facts
from fp16_patch.lab.data.reading import DatasetSpec, read
from fp16_patch.lab.folder_lock import exclusive_lock


def convert(
    dataset: DatasetSpec, output: Output, *, limit: int | None = None, say: Callable[[str], None] = print
) -> None:
    """Write the first ``limit`` problems of a dataset as parquet for verl and JSON Lines for OpenRLHF.

    Raises:
        Fp16PatchError: If the dataset is missing, or other files are in the way.
    """
    output.check({"model": None, **dataset.source.facts()})
    found = read(dataset, limit)
    with exclusive_lock(output.folder):
        output.write(found.problems, {"dataset": dataset_facts(dataset, found)})
    say(f"{found} of {dataset.source.name}: {output.parquet}, {output.jsonl}")
