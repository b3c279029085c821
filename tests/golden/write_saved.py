# SPDX-License-Identifier: Apache-2.0
"""Write the checkpoints in tests/golden/saved anew: ``python tests/golden/write_saved.py [ENGINE ...]``.

They are to stay as an earlier version wrote them. Write one anew only where the format is changed on purpose.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fp16_patch import envs
from fp16_patch.precision import Precision

ROOT = Path(__file__).parents[2]
SAVED = Path(__file__).parent / "saved"
TESTS = ROOT / "tests"
CASE = "golden-written"

ENGINES: dict[str, tuple[list[str], dict[str, str]]] = {
    # engine -> the script that runs its cases, up to its folder; its environment, as in each conftest.py
    "fsdp": (
        [str(TESTS / "frameworks" / "verl" / "engine_cases.py"), "flag"],
        {
            "VERL_PLATFORM": "cpu",
            "VERL_USE_EXTERNAL_MODULES": "fp16_patch.lab.cpu.verl,fp16_patch.frameworks.verl.worker",
            envs.PRECISION: Precision().to_environment(),
        },
    ),
    "deepspeed": ([str(TESTS / "engines" / "deepspeed" / "zero_cases.py")], {"DS_ACCELERATOR": "cpu"}),
    "megatron": ([str(TESTS / "engines" / "megatron" / "core_cases.py")], {"TORCHDYNAMO_DISABLE": "1"}),
}
NOT_NEEDED = ("zero_to_fp32.py", "huggingface")
"""In a checkpoint, and not read when it is loaded."""


def write(engine: str) -> None:
    (script, *arguments), environment = ENGINES[engine]
    paths = [ROOT, Path(script).parent, TESTS / "support", TESTS / "engines" / "fsdp"]
    with tempfile.TemporaryDirectory() as temporary:
        whole = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "FP16_PATCH_REPORTS": f"{temporary}/reports",
            **environment,
        }
        subprocess.run([sys.executable, script, *arguments, temporary, CASE], env=whole, check=True)
        outcome = Path(temporary, f"{CASE}.0.json").read_text()
        if "error" in outcome:
            raise SystemExit(f"{engine}: {outcome}")
        target = SAVED / engine
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(temporary, CASE), target, ignore=shutil.ignore_patterns(*NOT_NEEDED))
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"wrote {target}: {size / 1024:.0f} KiB")


if __name__ == "__main__":
    for name in sys.argv[1:] or ENGINES:
        write(name)
