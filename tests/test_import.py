# SPDX-License-Identifier: Apache-2.0
"""Installed but not asked for, the package changes nothing and costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(code: str, *arguments: str, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FP16_PATCH")}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110, env=environment, cwd=cwd)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def measure(module: str, unwanted: set[str]) -> tuple[float, set[str]]:
    """Return the CPU seconds that importing ``module`` takes, the best of 3, and which of ``unwanted`` it loads."""
    code = f"""
import sys, time
start = time.process_time()
import {module}
print(time.process_time() - start, *sys.modules)
"""
    outputs = [run(code).split() for _ in range(3)]
    return min(float(seconds) for seconds, *_ in outputs), unwanted & set(outputs[0][1:])


def test_importing_is_cheap_and_pulls_in_nothing_heavy():
    seconds, heavy = measure("fp16_patch", {"torch", "verl", "vllm", "ray", "hydra", "omegaconf", "yaml", "numpy"})
    assert not heavy, f"import fp16_patch also imported {heavy}"
    assert seconds < 0.05, f"import fp16_patch took {seconds:.3f} s, the promise is 0.05"


def test_verl_s_plan_which_every_process_loads_is_cheap():
    heavy = {"torch", "numpy", "omegaconf", "hydra", "ray", "verl", "vllm", "pydantic", "jinja2", "psutil"}
    scans = {"importlib.metadata", "fp16_patch.lab"}  # entry points are looked up there
    seconds, loaded = measure("fp16_patch.frameworks.verl.plan", heavy | scans)
    assert not loaded, f"verl's plan also imported {loaded}"
    assert seconds < 0.15, f"verl's plan took {seconds:.3f} s, the promise is 0.15"


def test_the_public_functions_are_the_version_and_the_status():
    code = """
import fp16_patch, sys
ledger = fp16_patch.status()
from fp16_patch.patching import status
print(sorted(fp16_patch.__all__), ledger is status(), ledger.entries, "torch" in sys.modules)
"""
    assert run(code).strip() == "['__version__', 'status'] True () False"


IDENTITIES = """
import builtins, sys
def machinery():
    return [*map(id, sys.meta_path), *map(id, sys.path_hooks), id(builtins.__import__)]
def identities():
    seen = {}
    for name, module in sorted(sys.modules.items(), key=lambda item: item[0]):
        if name == "verl" or name.startswith("verl."):
            for attribute, thing in vars(module).items():
                seen[f"{name}.{attribute}"] = id(thing)
                if isinstance(thing, type) and thing.__module__ == name:
                    seen |= {f"{name}.{attribute}.{member}": id(inner) for member, inner in vars(thing).items()}
    return seen
import verl, verl.trainer.ppo.v1.trainer_base, verl.workers.engine.fsdp.transformer_impl, verl.utils.debug.metrics
imports, things = machinery(), identities()
import fp16_patch, fp16_patch.patching
assert machinery() == imports, "what is imported later would be changed"
changed = {name for name, thing in identities().items() if things.get(name) != thing}
assert not changed and len(identities()) == len(things), changed
print(len(things))
"""


def test_with_the_flag_off_no_attribute_of_verl_differs():
    """What was imported before is the same object afterwards, and nothing waits for what is imported later."""
    assert int(run(IDENTITIES)) > 2000, "the comparison should cover verl's modules, classes and methods"


APPLICATION = """
import sys
import hydra
from hydra.core.hydra_config import HydraConfig
@hydra.main(version_base=None)
def main(_):
    sources = {source["provider"] for source in HydraConfig.get().runtime.config_sources}
    print("SOURCES", *sorted(sources))
    print("MODULES", *sorted(sys.modules))
main()
"""


def test_another_hydra_application_gets_a_search_path_and_nothing_else(tmp_path: Path):
    out = run(APPLICATION, cwd=tmp_path)
    sources, modules = (line.split()[1:] for line in out.splitlines() if line.startswith(("SOURCES", "MODULES")))
    assert "fp16_patch" in sources, "the plugin was not found"
    ours = [name for name in modules if name.startswith("fp16_patch.lab")]
    assert not {"torch", "numpy", "verl", "vllm", "ray"} & set(modules)
    assert ours == []
