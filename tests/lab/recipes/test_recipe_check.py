# SPDX-License-Identifier: Apache-2.0
"""``recipes check`` and ``run`` compose each arm under its platform; what a framework refuses is one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fp16_patch.cli import main
from fp16_patch.lab.loading.load import find

ACTOR = "actor_rollout_ref.actor"


def write(folder: Path, name: str, overrides: dict[str, object]) -> str:
    recipe = yaml.safe_load(find("quickstart").read_text())
    recipe.pop("openrlhf", None)
    recipe |= {"name": name, "expected": [], "arms": {"fp16": {"precision": "fp16"}}}
    recipe["verl"]["overrides"] |= overrides
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return str(folder / f"{name}.yaml")


def test_what_verl_s_dataclasses_refuse_fails_and_the_others_are_checked(tmp_path: Path, capsys) -> None:
    recipes = [
        write(tmp_path, "mode", {f"{ACTOR}.loss_agg_mode": "banana"}),
        write(tmp_path, "batch", {f"{ACTOR}.ppo_mini_batch_size": 32}),
        write(tmp_path, "lora", {"actor_rollout_ref.model.lora_rank": 8}),
    ]
    assert main(["recipes", "check", *recipes, "--json"]) == 1
    found = {one["recipe"]: one["problem"] for one in json.loads(capsys.readouterr().out)}
    assert list(found) == ["mode", "batch", "lora"]
    assert found["mode"].startswith("verl refuses the configuration: ")
    assert "loss_agg_mode: banana" in found["mode"]
    assert found["batch"].startswith("verl refuses the configuration: ")
    assert found["lora"] is None, "on the recipe's platform vLLM has a version"


def test_a_run_of_what_verl_s_dataclasses_refuse_ends_before_it_starts(tmp_path: Path, capsys) -> None:
    recipe = write(tmp_path, "mode", {f"{ACTOR}.loss_agg_mode": "banana"})
    assert main(["recipes", "run", recipe, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fp16_patch: fp16: verl refuses the configuration: ")
    assert "loss_agg_mode: banana" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture(autouse=True)
def no_platform_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VERL_PLATFORM", "VERL_USE_EXTERNAL_MODULES", "FP16_PATCH_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
