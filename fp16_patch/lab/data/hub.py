# SPDX-License-Identifier: Apache-2.0
"""A dataset of the hub, which is asked once and need not answer."""

from __future__ import annotations

from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.data.table_file import ENDINGS


def snapshot(name: str) -> Path:
    """The dataset's folder in the hub's cache: what the hub has now, or, where it does not answer, what is there."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError

    if name.endswith(ENDINGS):
        raise _no_such(name)
    data = ["*.parquet", "*.json", "*.jsonl", "README.md"]
    try:
        revision = HfApi().dataset_info(name, timeout=10).sha
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=data))
    except HFValidationError as error:  # ./data, /data, a/b/c
        raise _no_such(name) from error
    except Exception as no_answer:  # offline, no such dataset, no permission: the hub's own words say which
        try:
            return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
        except Exception:  # nor is it in the cache; what matters is why the hub did not answer
            raise Fp16PatchError(
                f"--dataset {name}: no such file or folder, not in the cache, and the hub does not give it "
                f"({type(no_answer).__name__})",
                code="dataset-not-found",
                next_step=f"hf download {name} --repo-type dataset, where there is a network; or give a file or folder",
            ) from no_answer


def _no_such(path: str) -> Fp16PatchError:
    """For what the hub would not take for an id: fetching it is no advice."""
    return Fp16PatchError(
        f"--dataset {path}: no such file or folder",
        code="dataset-not-found",
        next_step="give one there is, or a hub id",
    )
