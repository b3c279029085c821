# SPDX-License-Identifier: Apache-2.0
"""The checkpoints in tests/golden/saved: what was trained before they were written, and where they lie.

Each engine has two cases, in its golden_*_cases.py: ``golden-written`` trains and saves as these were, which is also
how ``tests/golden/write_saved.py`` made them, and ``golden-loaded`` resumes from the committed one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp16_patch.loss_scaling import LossScaling

SAVED = Path(__file__).parents[1] / "golden" / "saved"
FACTS = "facts.json"
"""Beside each checkpoint: the scaler's state and the digest of the weights when it was written."""

SETTINGS = LossScaling(init_scale=2.0**10, growth_interval=3, hysteresis=2)
UPDATES = 9
BAD = frozenset({1, 2, 3, 7})
"""Updates, counted from 0, with an inf in a gradient: one is let pass, two lower the scale, one is let pass."""


def write_facts(folder: Path, state: Mapping[str, Any], weights: str) -> dict[str, Any]:
    facts = {"state": json.loads(json.dumps(state)), "weights": weights}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def copy_of(engine: str, folder: Path) -> Path:
    """Copy the committed checkpoint to ``folder``: loading may write or delete."""
    return Path(shutil.copytree(SAVED / engine, folder / f"golden-{engine}"))
