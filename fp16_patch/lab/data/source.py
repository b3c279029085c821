# SPDX-License-Identifier: Apache-2.0
"""Rows of a dataset: a file, a folder, or an id of the hub, which is asked once and need not answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.data import hub, table_file
from fp16_patch.lab.data.table_file import Row

_BATCH = 1000


@dataclass(frozen=True)
class Source:
    """``name`` is a path or a hub id; ``config`` and ``split``, else train, matter where it holds several."""

    name: str
    config: str | None = None
    split: str | None = None

    @property
    def part(self) -> str | None:
        """The split that is read; None of a dataset that has none."""
        path = Path(self.name).expanduser()
        return None if path.is_file() or _one_table(path) else self.split or "train"

    def facts(self) -> dict[str, str | None]:
        """What a manifest says of it."""
        return {"dataset": self.name, "config": self.config, "split": self.part}

    def open(self) -> tuple[Iterator[Row], str | None]:
        """The rows, read as they are asked for, and the revision where the dataset is the hub's.

        Raises ``Fp16PatchError``, saying what to fetch where it is missing.
        """
        path = Path(self.name).expanduser()
        if path.is_file():
            self._has_no("config", "split")
            return table_file.rows(path), None
        if path.is_dir():
            return self._folder(path), None
        folder = hub.snapshot(self.name)
        return self._folder(folder), folder.name

    def _folder(self, folder: Path) -> Iterator[Row]:
        import datasets

        split = self.split or "train"
        datasets.disable_progress_bars()
        try:
            if _one_table(folder):
                self._has_no("config", "split")
                dataset = datasets.load_from_disk(str(folder))
            elif (folder / "dataset_dict.json").is_file() or _one_table(folder / split):
                self._has_no("config")
                dataset = datasets.load_from_disk(str(folder / split))
            else:
                dataset = datasets.load_dataset(str(folder), self.config, split=split)
        except Fp16PatchError:
            raise
        except Exception as error:  # of many kinds; it names the configurations or splits there are, or its cause does
            told = f"{error} {error.__cause__ or ''}"
            raise Fp16PatchError(
                f"cannot read --dataset {self.name}, split {split}: {' '.join(told.split())[:400]}",
                code="dataset-unreadable",
                allowed="a dataset of parquet or JSON files, or one written by datasets' save_to_disk",
                next_step="name what it holds with --split and --config",
            ) from error
        return _rows(dataset)

    def _has_no(self, *options: str) -> None:
        """What is asked for where there is no choice is refused, and not passed over."""
        if given := [f"--{option} {getattr(self, option)}" for option in options if getattr(self, option) is not None]:
            raise Fp16PatchError(
                f"{' and '.join(given)}: --dataset {self.name} has none to choose from",
                code="nothing-to-choose-from",
                next_step="leave it out",
            )


def _one_table(folder: Path) -> bool:
    """As ``save_to_disk`` writes a dataset without splits."""
    return (folder / "state.json").is_file()


def _rows(dataset: Any) -> Iterator[Row]:
    for batch in dataset.iter(batch_size=_BATCH):
        columns = list(batch)
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*batch.values(), strict=True))
