# SPDX-License-Identifier: Apache-2.0
"""The commands of the frameworks' example scripts under the flag: what is accepted, and what is refused why.

``outcomes.json`` says it for each script. After a change that is meant: ``python tests/examples/outcomes.py --write``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
OUTCOMES = json.loads((FOLDER / "outcomes.json").read_text())
PARTS = {"verl": 4, "openrlhf": 1}
CHUNKS = [(name, part) for name, parts in PARTS.items() for part in range(parts)]
UNFIT = ("configuration-refused", "module-not-found")
"""The release under test refuses such a command by itself, with and without the flag."""


@pytest.mark.parametrize(("framework", "part"), CHUNKS)
def test_each_script_has_the_outcome_on_record(framework: str, part: int) -> None:
    if find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    command = [sys.executable, FOLDER / "outcomes.py", framework, str(part), str(PARTS[framework])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found == {script: OUTCOMES[framework][script] for script in found}


@pytest.mark.parametrize(("framework", "accepted", "unfit"), [("verl", 61, 5), ("openrlhf", 8, 0)])
def test_how_many_scripts_are_accepted(framework: str, accepted: int, unfit: int) -> None:
    kinds = _by_kind(framework)
    assert len(kinds["accepted"]) >= accepted, kinds["refused"]
    assert len(kinds["unfit"]) <= unfit, kinds["unfit"]


@pytest.mark.parametrize("framework", PARTS)
def test_a_refusal_names_what_the_user_wrote(framework: str) -> None:
    launches = [json.loads(line) for line in (FOLDER / f"{framework}.jsonl").read_text().splitlines()[1:]]
    written = {one["script"]: json.dumps([one["module"], *one["arguments"]]) for one in launches}
    refused = _by_kind(framework)["refused"]
    assert refused or framework == "openrlhf"  # all of its scripts are accepted
    for script, problems in refused.items():
        for problem in problems:
            code, _, setting = problem.partition(": ")
            if code == "application-not-supported":  # it names the module
                continue
            key, _, value = setting.lstrip("-").replace(" ", "=").partition("=")
            chosen = f"model_engine={value}" in written[script]  # it sets the strategies
            assert chosen or key in written[script], (script, problem)


def _by_kind(framework: str) -> dict[str, dict[str, list[str]]]:
    kinds: dict[str, dict[str, list[str]]] = {"accepted": {}, "refused": {}, "unfit": {}}
    for script, outcome in OUTCOMES[framework].items():
        problems = [] if isinstance(outcome, str) else outcome
        unfit = any(problem.startswith(UNFIT) for problem in problems)
        kinds["unfit" if unfit else "refused" if problems else "accepted"][script] = problems
    return kinds
