# SPDX-License-Identifier: Apache-2.0
"""Read the rows of a dataset: a file, a folder, or an id of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.data.json_rows import read_rows

Row = dict[str, Any]
FILE_SUFFIXES = (".parquet", ".jsonl", ".json")
_BATCH = 1000


@dataclass(frozen=True)
class Source:
    """Name a dataset. ``name`` is a path or a hub id; ``config`` and ``split`` choose among several."""

    name: str
    config: str | None = None
    split: str | None = None

    @property
    def effective_split(self) -> str | None:
        """Return the split that is read, by default train; None for a dataset without splits."""
        path = Path(self.name).expanduser()
        return None if path.is_file() or _is_single_table(path) else self.split or "train"

    def facts(self) -> dict[str, str | None]:
        """Return the dataset's entries of a manifest."""
        return {"dataset": self.name, "config": self.config, "split": self.effective_split}

    def open(self) -> tuple[Iterator[Row], str | None]:
        """Return the rows, read lazily, and the revision of a dataset on the hub.

        Raises:
            Fp16PatchError: If the dataset is missing or cannot be read.
        """
        path = Path(self.name).expanduser()
        if path.is_file():
            self._reject_unused_options("config", "split")
            return _rows_of_file(path), None
        if path.is_dir():
            return self._rows_of_folder(path), None
        folder = _download(self.name)
        return self._rows_of_folder(folder), folder.name

    def _rows_of_folder(self, folder: Path) -> Iterator[Row]:
        import datasets

        split = self.split or "train"
        datasets.disable_progress_bars()
        try:
            if _is_single_table(folder):
                self._reject_unused_options("config", "split")
                dataset = datasets.load_from_disk(str(folder))
            elif (folder / "dataset_dict.json").is_file() or _is_single_table(folder / split):
                self._reject_unused_options("config")
                dataset = datasets.load_from_disk(str(folder / split))
            else:
                dataset = datasets.load_dataset(str(folder), self.config, split=split)
        except Fp16PatchError:
            raise
        except Exception as error:  # of many types; the error or its cause names the available configs or splits
            message = " ".join(f"{error} {error.__cause__ or ''}".split())[:400]
            raise Fp16PatchError(
                f"cannot read --dataset {self.name}, split {split}: {message}",
                code="dataset-unreadable",
                allowed="a dataset of parquet or JSON files, or one written by datasets' save_to_disk",
                next_step="choose one of its splits and configs with --split and --config",
            ) from error
        return (row for batch in dataset.with_format("arrow").iter(_BATCH) for row in batch.to_pylist())

    def _reject_unused_options(self, *options: str) -> None:
        if given := [f"--{option} {getattr(self, option)}" for option in options if getattr(self, option) is not None]:
            raise Fp16PatchError(
                f"{' and '.join(given)} cannot be used: --dataset {self.name} has nothing to choose from",
                code="nothing-to-choose-from",
                next_step="omit it",
            )


def _is_single_table(folder: Path) -> bool:
    return (folder / "state.json").is_file()  # as save_to_disk writes a dataset without splits


def _rows_of_file(path: Path) -> Iterator[Row]:
    if path.suffix not in FILE_SUFFIXES:
        raise Fp16PatchError(
            f"--dataset {path} is not a dataset",
            code="dataset-unreadable",
            allowed=f"files that end in {', '.join(FILE_SUFFIXES)}",
            next_step="name such a file, a folder of them, or a hub id",
        )
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            for batch in parquet.ParquetFile(path).iter_batches(_BATCH):
                yield from batch.to_pylist()
        else:
            yield from read_rows(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise Fp16PatchError(
            f"cannot read --dataset {path}: {error}",
            code="dataset-unreadable",
            next_step="download or write it again",
        ) from error


def _download(name: str) -> Path:
    """Return the dataset's folder in the hub's cache: the newest revision, or the cached one if the hub fails."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.parquet", "*.json", "*.jsonl", "README.md"]
    try:
        if name.endswith(FILE_SUFFIXES):
            raise HFValidationError(name)
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except HFValidationError as error:  # ./data, /data, a/b/c, data.jsonl
        raise Fp16PatchError(
            f"--dataset {name}: no such file or folder",
            code="dataset-not-found",
            next_step="pass an existing one, or a hub id",
        ) from error
    except Exception as error:  # offline, no such dataset, no permission
        raise Fp16PatchError(
            f"--dataset {name} is not a file or folder, not in the cache and not on the hub "
            f"({type(error.__cause__ or error).__name__})",
            code="dataset-not-found",
            next_step=f"run `hf download {name} --repo-type dataset` on a machine with a network, or pass a folder",
        ) from error
