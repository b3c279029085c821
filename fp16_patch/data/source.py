# SPDX-License-Identifier: Apache-2.0
"""Rows of a dataset: a file, a folder, or an id of the hub, which is asked once and need not answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError

Row = dict[str, Any]
FILES = (".parquet", ".jsonl", ".json")
_BATCH = 1000


@dataclass(frozen=True)
class Source:
    """``name`` is a path or a hub id; ``config`` and ``split`` matter where it holds several."""

    name: str
    config: str | None = None
    split: str = "train"

    def open(self) -> tuple[Iterator[Row], str | None]:
        """The rows, read as they are asked for, and the revision where the dataset is the hub's.

        Raises ``Fp16PatchError``, saying what to fetch where it is missing.
        """
        path = Path(self.name).expanduser()
        if path.is_file():
            return _file(path), None
        if path.is_dir():
            return self._folder(path), None
        folder = _from_hub(self.name)
        return self._folder(folder), folder.name

    def _folder(self, folder: Path) -> Iterator[Row]:
        import datasets

        datasets.disable_progress_bars()
        try:
            if (folder / "dataset_dict.json").is_file() or (folder / self.split / "state.json").is_file():
                dataset = datasets.load_from_disk(str(folder / self.split))
            elif (folder / "state.json").is_file():
                dataset = datasets.load_from_disk(str(folder))
            else:
                dataset = datasets.load_dataset(str(folder), self.config, split=self.split)
        except Exception as error:  # of many kinds; its first line names the configurations or splits there are
            raise Fp16PatchError(
                f"cannot read --dataset {self.name}, split {self.split}: {' '.join(str(error).split())[:400]}",
                allowed="a dataset of parquet or JSON files, or one written by datasets' save_to_disk",
                next_step="name what it holds with --split and --config",
            ) from error
        return _rows(dataset)


def _rows(dataset: Any) -> Iterator[Row]:
    for batch in dataset.iter(batch_size=_BATCH):
        columns = list(batch)
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*batch.values(), strict=True))


def _file(path: Path) -> Iterator[Row]:
    if path.suffix not in FILES:
        raise Fp16PatchError(f"--dataset {path} is no dataset", allowed=f"files that end in {', '.join(FILES)}")
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            for batch in parquet.ParquetFile(path).iter_batches(_BATCH):
                yield from batch.to_pylist()
        elif path.suffix == ".json":
            yield from _objects(json.loads(path.read_text(encoding="utf-8")))
        else:
            with path.open(encoding="utf-8") as lines:
                yield from _objects([json.loads(line) for line in lines if line.strip()])
    except (OSError, ValueError) as error:  # pyarrow's and json's are ValueErrors
        raise Fp16PatchError(f"cannot read --dataset {path}: {error}", next_step="fetch or write it again") from error


def _objects(rows: Any) -> list[Row]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it does not hold a list of objects")
    return rows


def _from_hub(name: str) -> Path:
    """The dataset's folder in the hub's cache: what the hub has now, or, where it does not answer, what is there."""
    from huggingface_hub import HfApi, snapshot_download

    data = ["*.parquet", "*.json", "*.jsonl", "README.md"]
    try:
        revision = HfApi().dataset_info(name, timeout=10).sha
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=data))
    except Exception as no_answer:  # offline, no such dataset, no permission: the hub's own words say which
        try:
            return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
        except Exception:  # nor is it in the cache; what matters is why the hub did not answer
            raise Fp16PatchError(
                f"--dataset {name}: no such file or folder, not in the cache, and the hub does not give it "
                f"({type(no_answer).__name__})",
                next_step=f"hf download {name} --repo-type dataset, where there is a network; or give a file or folder",
            ) from no_answer
