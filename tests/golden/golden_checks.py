# SPDX-License-Identifier: Apache-2.0
"""What the tests of each engine ask of the checkpoint in tests/golden/saved."""

from __future__ import annotations

import json
import pickletools
import zipfile
from pathlib import Path
from typing import Any

from fp16_patch.loss_scaling.state_file import OPTIONAL_COUNTS, OPTIONAL_KEYS, OPTIONAL_SETTINGS

SAVED = Path(__file__).parent / "saved"


def facts(engine: str) -> dict[str, Any]:
    """Return the scaler's state and the digest of the weights when the checkpoint was written."""
    return json.loads((SAVED / engine / "facts.json").read_text())


def check_loaded(engine: str, loaded: dict[str, Any]) -> None:
    """Assert that scale, trackers, counts, history and weights came back, and that training goes on from them."""
    saved = facts(engine)
    state = loaded["state"]
    assert like_the_saved(state) == saved["state"]
    assert state["recent_skips"] == []
    assert (state["scale"], state["growth_tracker"], state["hysteresis_left"]) == (512, 1, 1)
    counts = {"updates": 9, "skipped": 4, "consecutive": 0, "growths": 1, "backoffs": 2, "losses_not_finite": 0}
    assert state["counts"] == counts
    assert state["history"] == [[0, 1024], [3, 512], [4, 256], [7, 512]]
    assert loaded["before"] != saved["weights"], "the model had these weights before it was loaded"
    assert loaded["weights"] == saved["weights"]
    assert loaded["next"]["scale"] == 512
    assert loaded["next"]["state"]["growth_tracker"] == 2
    assert loaded["next"]["state"]["counts"] == {**state["counts"], "updates": 10}


def like_the_saved(state: dict[str, Any]) -> dict[str, Any]:
    """Return ``state`` without what the version that wrote the checkpoints did not have."""
    kept = {key: value for key, value in state.items() if key not in OPTIONAL_KEYS}
    for group, missing in (("counts", OPTIONAL_COUNTS), ("settings", OPTIONAL_SETTINGS)):
        kept[group] = {key: value for key, value in kept[group].items() if key not in missing}
    return kept


def check_no_pickled_class(folder: Path, *, files: int) -> set[str]:
    """Assert that ``files`` pickles are in ``folder`` and none names this package; return what they name.

    A class that is pickled by its path cannot be moved: the checkpoint would not load.
    """
    found = sorted(folder.rglob("*.pt"))
    assert len(found) == files, found
    names = set().union(*map(pickled_names, found))
    assert names, "no pickle names anything"
    assert not {name for name in names if name.startswith("fp16_patch")}, names
    return names


def pickled_names(file: Path) -> set[str]:
    """Return the dotted names of all classes and functions that a file of ``torch.save`` needs to be loaded."""
    with zipfile.ZipFile(file) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        pickled = archive.read(name)
    operations = [(operation.name, argument) for operation, argument, _ in pickletools.genops(pickled)]
    assert "STACK_GLOBAL" not in dict(operations), f"{file}: torch.save wrote protocol 2, whose names are in GLOBAL"
    return {argument.replace(" ", ".") for operation, argument in operations if operation == "GLOBAL"}
