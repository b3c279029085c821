# SPDX-License-Identifier: Apache-2.0
"""The example for megatron-core by itself, run as it is."""

from __future__ import annotations

import runpy
from pathlib import Path

from core_registry import case
from engine_ranks import Result

EXAMPLE = Path(__file__).parents[3] / "examples" / "megatron_core.py"


def example(rank: int) -> Result:
    metrics = runpy.run_path(str(EXAMPLE))["train"]()
    made = [update["loss"] for update in metrics if not update["update_skipped"]]
    return {"first": made[0], "last": made[-1], "skipped": metrics[-1]["updates_skipped_total/max"]}


case("example", example, ranks=2)
