# SPDX-License-Identifier: Apache-2.0
"""Say what the flag makes of the commands of a framework's example scripts, each composed as the framework does.

python tests/examples/outcomes.py verl|openrlhf [PART OF PARTS]

Prints JSON, script -> "accepted", "accepted with overwrite=true" or the problems. With --write, saves all of them in
outcomes.json.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
OUTCOMES = FOLDER / "outcomes.json"
PLATFORM = {
    "FP16_PATCH_PLATFORM": "cpu",
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "fp16_patch.lab.cpu.verl,fp16_patch.lab.cpu.megatron",
    "RAY_ADDRESS": "local",
}
CHANGED: dict[str, dict[str, str | None]] = {
    "verl": {
        "verl.trainer.main_ppo_sync": "verl.trainer.main_ppo",
        "actor_rollout_ref.actor.megatron.grad_offload": None,
        "actor_rollout_ref.ref.megatron.grad_offload": None,
        "critic.megatron.grad_offload": None,
        "actor_rollout_ref.actor.model_engine": "model_engine",
        "+actor_rollout_ref.actor.fsdp_config.model_dtype": "actor_rollout_ref.actor.fsdp_config.model_dtype",
        "+actor_rollout_ref.model.lora.merge": "actor_rollout_ref.model.lora.merge",
    },
    "openrlhf": {},
}
"""What the release under test names otherwise than the scripts' commit; None: it has no such setting."""


def launches(framework: str) -> list[tuple[str, list[str]]]:
    """Return script and command of each launch, with the names of the release under test."""
    changed = CHANGED[framework]
    found = []
    for line in (FOLDER / f"{framework}.jsonl").read_text().splitlines()[1:]:
        launch: dict[str, Any] = json.loads(line)
        module = changed.get(launch["module"], launch["module"])
        words: list[str] = []
        for argument in launch["arguments"]:
            key, equals, value = argument.partition("=")
            if (now := changed.get(key, key)) is not None:
                words.append(f"{now}{equals}{value}")
        if framework == "openrlhf":
            words = _in_fp16(_correction(words))
        found.append((launch["script"], ["python", "-m", str(module), *words]))
    return found


def _correction(words: list[str]) -> list[str]:
    """Return the words with the correction as OpenRLHF 0.11.2 spells it: level and mode in place of a type."""
    enable, kind = "--algo.advantage.is_correction_enable", "--algo.advantage.is_correction_type"
    if enable not in words:
        return words
    at = words.index(kind) if kind in words else len(words)
    level, mode = {"tis": ("token", "clip"), "icepop": ("token", "mask")}[(words[at + 1 :] or ["tis"])[0]]
    rest = [word for word in (*words[:at], *words[at + 2 :]) if word != enable]
    return [*rest, "--algo.advantage.is_correction_level", level, "--algo.advantage.is_correction_mode", mode]


def _in_fp16(words: list[str]) -> list[str]:
    """Return the words with OpenRLHF's own flag, which asks for FP16."""
    flag = "--ds.param_dtype"
    at = words.index(flag) if flag in words else len(words)
    return [*words[:at], *words[at + 2 :], flag, "fp16"]


def outcome(command: list[str]) -> str | list[str]:
    """Return what the flag makes of one command: accepted, or the codes and settings of its problems."""
    from fp16_patch.cli import command_check
    from fp16_patch.errors import Fp16PatchError
    from fp16_patch.frameworks.user_command import find

    found = find(command)
    assert found is not None, command
    problems: list[str] = []
    for settings, name in (([], "accepted"), (["fp16_patch.overwrite=true"], "accepted with overwrite=true")):
        try:
            examined = command_check.examine(found, settings)
        except Fp16PatchError as error:
            return [str(error.code)]
        if examined["ready"]:
            return name
        problems = problems or [_problem(one["code"], one["what"]) for one in examined["refused"]]
        if not any(problem.startswith("setting-contradicts") for problem in problems):
            break
    return problems


def _problem(code: str, what: str) -> str:
    """Return the code, and for a setting its key and value."""
    return f"{code}: {re.split(' contradicts|: ', what)[0]}" if code.startswith("setting-") else code


def main(words: list[str]) -> None:
    """Print the outcomes of one part of a framework's launches, or write all."""
    os.environ.update(PLATFORM)
    if words == ["--write"]:
        found = {name: dict(sorted((script, outcome(one)) for script, one in launches(name))) for name in CHANGED}
        OUTCOMES.write_text(json.dumps(found, indent=1) + "\n")
        return
    framework, part, parts = (*words, "0", "1")[:3]
    print(json.dumps({script: outcome(one) for script, one in launches(framework)[int(part) :: int(parts)]}))


if __name__ == "__main__":
    main(sys.argv[1:])
