# SPDX-License-Identifier: Apache-2.0
"""Installed but not asked for, the package changes nothing and costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_importing_is_cheap_and_pulls_in_nothing_heavy():
    code = """
import sys, time
start = time.perf_counter()
import fp16_patch
seconds = time.perf_counter() - start
heavy = sorted({"torch", "verl", "vllm", "ray", "hydra", "omegaconf", "yaml", "numpy"} & set(sys.modules))
print(seconds, ",".join(heavy))
"""
    seconds, heavy = min((run(code).split(" ", 1) for _ in range(3)), key=lambda s: float(s[0]))
    assert heavy.strip() == "", f"import fp16_patch also imported {heavy}"
    assert float(seconds) < 0.05, f"import fp16_patch took {float(seconds):.3f} s, the promise is 0.05"


def test_the_public_functions_are_the_version_and_the_status():
    code = """
import fp16_patch, sys
ledger = fp16_patch.status()
from fp16_patch.patching import status
print(sorted(fp16_patch.__all__), ledger is status(), ledger.entries, "torch" in sys.modules)
"""
    assert run(code).strip() == "['__version__', 'status'] True () False"


IDENTITIES = """
import json, sys
{before}
import verl, verl.trainer.ppo.v1.trainer_base, verl.workers.engine.fsdp.transformer_impl, verl.utils.debug.metrics
{after}
def code_of(thing):
    raw = getattr(thing, "__func__", thing)
    code = getattr(raw, "__code__", None)
    return f"{{code.co_filename}}:{{code.co_firstlineno}}" if hasattr(code, "co_filename") else type(thing).__name__
seen = {{}}
for name, module in sorted(sys.modules.items(), key=lambda item: item[0]):
    if name == "verl" or name.startswith("verl."):
        for attribute, thing in sorted(vars(module).items(), key=lambda item: item[0]):
            seen[f"{{name}}.{{attribute}}"] = code_of(thing)
            if isinstance(thing, type) and thing.__module__ == name:
                for member, inner in sorted(vars(thing).items(), key=lambda item: item[0]):
                    seen[f"{{name}}.{{attribute}}.{{member}}"] = code_of(inner)
print("IDENTITIES" + json.dumps([seen, [type(finder).__name__ for finder in sys.meta_path]]))
"""


def test_with_the_flag_off_no_attribute_of_verl_differs():
    def identities(before: str, after: str) -> list[object]:
        out = run(IDENTITIES.format(before=before, after=after))
        return json.loads(out[out.index("IDENTITIES") + len("IDENTITIES") :])

    without, finders = identities("", "")
    with_it, finders_with_it = identities("import fp16_patch", "import fp16_patch.patching")
    assert len(without) > 2000, "the comparison should cover verl's modules, classes and methods"
    assert with_it == without
    assert finders_with_it == finders
