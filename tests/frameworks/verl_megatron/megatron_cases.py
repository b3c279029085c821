# SPDX-License-Identifier: Apache-2.0
"""Cases on verl's real MegatronEngine: ``python megatron_cases.py KIND FOLDER [CASE ...]``; results go to FOLDER.

KIND is ``stock`` or ``flag``; the flag's worker module has then been imported with verl.

Torch, Megatron and verl are imported once; each case then gets ranks of its own (engine_ranks.py). Nothing of that is
imported at the top of this file: to save a checkpoint Megatron starts Python once more, which imports its main file.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(kind: str, folder: Path, chosen: list[str]) -> None:
    import stock_cases  # noqa: F401  registers its cases
    import verl.models.mcore.bridge  # noqa: F401  seconds, in every rank otherwise
    from engine_ranks import run_all
    from megatron_building import tiny_qwen3
    from megatron_registry import CASES, use_folder

    if kind == "flag":
        CASES.clear()
        import flag_cases  # noqa: F401  registers its cases
    else:
        import platform_cases  # noqa: F401  registers its cases

    use_folder(folder)
    tiny_qwen3(folder / "dense")
    tiny_qwen3(folder / "experts", experts=True)
    run_all(CASES, folder, chosen)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
