# SPDX-License-Identifier: Apache-2.0
"""Write the files of one set of problems, with a manifest. Each file is replaced atomically."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fp16_patch import files
from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.data import writing
from fp16_patch.lab.data.problem import Problem
from fp16_patch.lab.data.reading import DatasetSpec, ReadResult
from fp16_patch.lab.staged_files import staged_files


class Output:
    """The files of one set of problems in ``folder``.

    Raises:
        Fp16PatchError: If ``name`` cannot be the name of a file.
    """

    def __init__(self, folder: Path, name: str = "train") -> None:
        one_word = name == Path(name).name and name.isprintable()
        if not name or not one_word or name.startswith("."):
            raise Fp16PatchError(
                f"--name {name!r} cannot be the name of a file",
                code="invalid-name",
                allowed="a name without an ending, without / and without a dot in front",
                next_step="give the folder with --out",
            )
        self.folder, self.name = folder, name
        self.parquet = folder / f"{name}.parquet"
        """The problems for verl."""
        self.jsonl = folder / f"{name}.jsonl"
        """The problems for OpenRLHF."""
        self.manifest = folder / f"{name}.manifest.json"

    def check(self, facts: Mapping[str, Any]) -> None:
        """Check that the files may be replaced by those of ``facts``.

        Raises:
            Fp16PatchError: If ``folder`` is a file, or the files in it have no manifest, are of another dataset, or
                are a sanity test and the new ones a conversion, or the reverse.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise Fp16PatchError(
                f"--out {self.folder} is not a folder", code="write-failed", next_step="choose another --out"
            )
        with files.wrap_os_errors(self.folder):
            foreign = [path for path in (self.parquet, self.jsonl) if path.exists() and not self.manifest.exists()]
            there = self._facts()
        if other := [key for key in facts if there and there.get(key) != facts[key]]:
            was, wanted = (found.get(other[0]) or "none" for found in (there, facts))
            what = f"{self.parquet} already exists, with {other[0]} {was}, not {wanted}"
        elif foreign:
            what = f"{' and '.join(map(str, foreign))} already exists, and has no {self.manifest.name} of fp16-patch"
        else:
            return
        raise Fp16PatchError(what, code="output-in-the-way", next_step="choose another --out or --name")

    def _facts(self) -> dict[str, Any]:
        """Return the model and the dataset of the existing manifest; empty if it cannot be read."""
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
            return {"model": manifest.get("sampling", {}).get("model"), **manifest["dataset"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def write(self, problems: Sequence[Problem], facts: Mapping[str, Any], rates: Sequence[float] = ()) -> None:
        """Write the three files; the manifest holds ``facts``, library versions and the digests of both data files."""
        # The manifest first: files without one count as foreign.
        with files.wrap_os_errors(self.folder), staged_files(self.folder, self.manifest.name) as folder:
            writing.write(folder, self.name, problems, rates)
            digests = {path.name: file_digest(folder / path.name) for path in (self.parquet, self.jsonl)}
            manifest = {**facts, "versions": versions(), "files": digests}
            (folder / self.manifest.name).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def dataset_facts(dataset: DatasetSpec, found: ReadResult) -> dict[str, Any]:
    """Return the dataset's entries of the manifest."""
    return {
        **dataset.source.facts(),
        "revision": found.revision,
        "template": dataset.template,
        "problems": len(found.problems),
        "repeated_rows": found.repeated,
        "rows_without_question": found.without_question,
        "rows_without_answer": found.without_answer,
    }


def file_digest(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the libraries that affect what is read, sampled and scored."""
    from fp16_patch.patching import installed_version
    from fp16_patch.report import precision_report

    more = {name: installed_version((name,)) for name in ("datasets", "pyarrow", "math-verify")}
    found = {name: version for name, version in more.items() if version}
    return {"python": platform.python_version(), **precision_report.versions(), **found}
