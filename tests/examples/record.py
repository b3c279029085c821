# SPDX-License-Identifier: Apache-2.0
"""Record the commands that a framework's example scripts start.

python tests/examples/record.py CHECKOUT COMMIT FOLDER... >launches.jsonl

Each script runs with stand-ins for the programs that start something. A stand-in notes its arguments and ends. A script
that cannot run without Slurm (OpenRLHF's train_ppo_ray_slurm.sh) is added by hand.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STARTERS = ("python", "python3", "ray", "torchrun", "uv", "nsys", "nohup", "deepspeed", "hf", "bash")
HARMLESS = ("basename", "cat", "cut", "date", "dirname", "echo", "env", "grep", "head", "hostname", "mkdir", "nproc")
HARMLESS += ("printf", "pwd", "readlink", "realpath", "sed", "seq", "sleep", "tail", "tee", "tr", "wc", "whoami")
STAND_IN = """#!{python}
import json, os, sys
if sys.argv[1:2] == ["-c"]:  # it asks for a package of another device
    sys.exit(1)
with open(os.environ["RECORDED"], "a") as file:
    print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=file)
"""
SECONDS = 60
WANTED = re.compile(r"line \d+: (\w+): (?!command not found)")
CHOSEN = {"INFER_BACKEND": "vllm", "ROLLOUT_BACKEND": "vllm"}


def commands(script: Path, checkout: Path) -> list[list[str]]:
    """Return the argument lists of what ``script`` starts, in order.

    A variable that the script wants from its user is set to a path, or to what ``CHOSEN`` has.
    """
    given: dict[str, str] = {}
    while True:
        found, said = run(script, checkout, given)
        wanted = WANTED.search(said)
        if found or wanted is None or wanted[1] in given:
            return found
        given[wanted[1]] = CHOSEN.get(wanted[1], f"/home/user/{wanted[1].lower()}")


def run(script: Path, checkout: Path, given: dict[str, str]) -> tuple[list[list[str]], str]:
    """Run ``script`` with the variables ``given``; return what it started and its stderr."""
    with tempfile.TemporaryDirectory() as folder:
        programs, recorded, start = Path(folder) / "bin", Path(folder) / "recorded", Path(folder) / "start"
        programs.mkdir()
        recorded.touch()
        start.write_text("ulimit() { :; }\n")  # a raised limit is refused in a container
        for name in STARTERS:
            (programs / name).write_text(STAND_IN.format(python=sys.executable))
            (programs / name).chmod(0o755)
        for name in HARMLESS:
            if (found := shutil.which(name)) is not None:
                (programs / name).symlink_to(found)
        home = Path(folder) / "home"
        shutil.copytree(checkout, home / checkout.name, ignore=shutil.ignore_patterns(".git"))
        environment = {"PATH": str(programs), "HOME": str(home), "RECORDED": str(recorded), "BASH_ENV": str(start)}
        ended = subprocess.run(
            [shutil.which("bash") or "/bin/bash", str(home / checkout.name / script.relative_to(checkout))],
            cwd=home / checkout.name,
            env={**environment, "USER": "user", **given},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        lines = recorded.read_text().replace(str(home), "/home/user").splitlines()
    return [json.loads(line) for line in lines], ended.stderr


def launches(checkout: Path, folders: list[str]) -> list[dict[str, Any]]:
    """Return the commands of each script that start a module with arguments."""
    found = []
    for folder in folders:
        for script in sorted((checkout / folder).rglob("*.sh")):
            for words in commands(script, checkout):
                start = next((i for i, word in enumerate(words) if word == "-m" and i + 2 < len(words)), None)
                if start is not None:
                    name = str(script.relative_to(checkout))
                    found.append({"script": name, "module": words[start + 1], "arguments": words[start + 2 :]})
    return found


if __name__ == "__main__":
    checkout, commit, *folders = sys.argv[1:]
    print(json.dumps({"commit": commit}))
    for launch in launches(Path(os.path.abspath(checkout)), folders):
        print(json.dumps(launch))
