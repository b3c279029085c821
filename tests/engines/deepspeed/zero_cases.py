# SPDX-License-Identifier: Apache-2.0
"""Cases for the tests here. Run as ``python zero_cases.py FOLDER [CASE ...]``: results go to FOLDER.

Torch and DeepSpeed are imported once; each case then gets ranks of its own (engine_ranks.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

import average_cases  # noqa: F401  registers its cases
import checkpoint_cases  # noqa: F401  registers its cases
import deepspeed  # noqa: F401  imported before the patches, as a run may have
import golden_zero_cases  # noqa: F401  registers its cases
import scaling_cases  # noqa: F401  registers its cases
from engine_ranks import run_all
from zero_registry import CASES, use_folder

from fp16_patch.engines.deepspeed.plan import PLAN
from fp16_patch.patching import apply


def main(folder: Path, chosen: list[str]) -> None:
    use_folder(folder)
    for patches in PLAN.values():
        apply(patches)
    run_all(CASES, folder, chosen)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
