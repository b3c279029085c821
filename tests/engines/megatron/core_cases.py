# SPDX-License-Identifier: Apache-2.0
"""Cases for the tests here. Run as ``python core_cases.py FOLDER [CASE ...]``: results go to FOLDER.

Torch and megatron-core are imported once; each case then gets ranks of its own (engine_ranks.py).
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(folder: Path, chosen: list[str]) -> None:
    import cuda_stand_in

    cuda_stand_in.install()
    import chain_cases  # noqa: F401  registers its cases
    import checkpoint_cases  # noqa: F401  registers its cases
    import example_cases  # noqa: F401  registers its cases
    import golden_core_cases  # noqa: F401  registers its cases
    import overflow_cases  # noqa: F401  registers its cases
    import refusal_cases  # noqa: F401  registers its cases
    import router_cases  # noqa: F401  registers its cases
    import step_cases  # noqa: F401  registers its cases
    from core_registry import CASES, use_folder
    from engine_ranks import run_all

    use_folder(folder)
    run_all(CASES, folder, chosen)


if __name__ == "__main__":  # saving a checkpoint spawns processes that import this file
    main(Path(sys.argv[1]), sys.argv[2:])
