# SPDX-License-Identifier: Apache-2.0
"""The wheel with nothing but its three dependencies, and the core without what only the lab needs."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEPENDENCIES = {"packaging", "pyyaml", "hydra-core"}
THEIRS = {"omegaconf", "antlr4-python3-runtime"}  # hydra-core's own
STATIONS = ("cli", "patching", "plan", "entry", "config", "refusals")
"""Modules and folders, of the package or of a framework, that must import without any extra."""


def python(site: Path | None, code: str) -> str:
    """Run ``code`` with the installed packages, or with ``site`` and the standard library only."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FP16_PATCH", "PYTHON"))}
    isolated = [] if site is None else ["-I", "-S"]
    code = code if site is None else f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"
    command = [sys.executable, *isolated, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the unpacked wheel, and links to its dependencies as they are installed here."""
    pytest.importorskip("hatchling")
    dist, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=200)
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in DEPENDENCIES | THEIRS:
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if ".." not in file.parts}
        for top in tops - {"hydra_plugins", "__pycache__"}:
            (site / top).symlink_to(distribution.locate_file(top))
    return site


def test_it_requires_three_packages(site: Path) -> None:
    (info,) = site.glob("fp16_patch-*.dist-info")
    required = email.message_from_string((info / "METADATA").read_text()).get_all("Requires-Dist", [])
    names = {re.split(r"[^\w-]", line)[0].lower() for line in required if "extra ==" not in line}
    assert names == DEPENDENCIES


def test_it_holds_the_recipes(site: Path) -> None:
    assert (site / "fp16_patch" / "lab" / "recipes" / "data" / "quickstart.yaml").is_file()


IMPORT = """
import importlib, json, sys, traceback
failed = {}
for name in %r:
    try:
        importlib.import_module(name)
    except Exception:
        failed[name] = traceback.format_exc()[-600:]
assert not failed, "\\n".join(f"{name}: {error}" for name, error in failed.items())
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def modules(package: Path) -> list[str]:
    """Return the names of all modules of the core, those that run when they are imported left out."""
    names = []
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        runs = parts[-1] == "__main__" or name == "fp16_patch.frameworks.verl.worker"
        if not name.startswith("fp16_patch.lab") and not runs:
            names.append(name)
    return names


def test_without_extras_the_stations_import(site: Path) -> None:
    assert "omegaconf" in python(site, "import omegaconf, yaml, packaging; print(omegaconf.__name__)")
    chosen = [name for name in modules(site / "fp16_patch") if set(name.split(".")) & set(STATIONS)]
    for station in STATIONS:
        assert any(station in name.split(".") for name in chosen), f"no module of {station}"
    loaded = python(site, IMPORT % chosen)
    for heavy in ("torch", "numpy", "verl", "vllm", "ray", "deepspeed", "megatron", "psutil"):
        assert f'"{heavy}"' not in loaded


BLOCK = """
import sys
BLOCKED = {"matplotlib", "jinja2", "psutil", "datasets", "huggingface_hub", "tensorboard", "math_verify", "pyarrow"}
class Block:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename and frame.f_back:
            frame = frame.f_back
        ours = frame.f_globals.get("__name__", "").startswith("fp16_patch")
        if ours and name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}: a package of the lab")
sys.meta_path.insert(0, Block())
"""


def test_the_core_imports_without_the_lab_s_packages() -> None:
    """With torch and the engines. They may import those packages themselves; our modules may not."""
    probe = "exec(\"try: import psutil\\nexcept ModuleNotFoundError: print('blocked')\", {'__name__': 'fp16_patch.x'})"
    assert python(None, BLOCK + probe).strip() == "blocked"
    chosen = modules(ROOT / "fp16_patch")
    assert len(chosen) > 100
    assert '"torch"' in python(None, BLOCK + IMPORT % chosen)
