# SPDX-License-Identifier: Apache-2.0
"""The recipes of the paper: every panel has one, with the sources of its settings, and each would start."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from raising import raises_code

from fp16_patch.lab.launch.check import Checked, check
from fp16_patch.lab.loading.load import available, find, load, load_at_scale
from fp16_patch.lab.recipes import compose
from fp16_patch.lab.recipes.algorithms import algorithms
from fp16_patch.lab.recipes.schema import Recipe

PAPER = [path for path in available() if load(path).toy]
PANELS = {
    "Figure 1, Sanity GRPO": "GRPO",
    "Figure 1, Sanity GRPO-Token-TIS": "GRPO-Token-TIS",
    "Figure 1, Sanity GRPO-Seq-MIS": "GRPO-Seq-MIS",
    "Figure 1, Sanity GSPO": "GSPO",
    "Figure 1, Sanity PG-Seq-IS": "PG-Seq-IS",
    "Figure 1, Sanity PG-Seq-MIS": "PG-Seq-MIS",
    "Figure 1, OctoThinker GRPO": "GRPO",
    "Figure 1, LoRA GRPO-Token-TIS": "GRPO-Token-TIS",
    "Figure 1, MoE GRPO-Seq-MIS": "GRPO-Seq-MIS",
    "Figure 1, MoE GRPO-Token-TIS": "GRPO-Token-TIS",
    "Figure 1, MoE PG-Seq-TIS": "PG-Seq-TIS",
    "Figure 1, Dense-14B DAPO": "DAPO",
}


def test_every_panel_of_figure_1_has_a_recipe_with_its_algorithm_and_numbers() -> None:
    found = {recipe.reproduces.where: recipe for recipe in map(load, PAPER)}
    assert {where: found[where].algorithm.name for where in PANELS} == PANELS
    for where in PANELS:
        assert {"bf16", "fp16"} == set(found[where].arms) == set(found[where].published), where


@pytest.fixture(scope="module")
def every_arm() -> list[Checked]:
    """Compose each arm by the framework itself, under the platform of its recipe."""
    return list(check(available()))


@pytest.mark.timeout(600)  # the first one composes all
@pytest.mark.parametrize("path", available(), ids=lambda path: path.stem)
def test_every_arm_at_every_scale_would_start(path: Path, every_arm: list[Checked]) -> None:
    checked = [found for found in every_arm if found.recipe == path.stem]
    assert {(c.scale, c.framework, c.arm) for c in checked} == {
        (scale, framework, arm)
        for scale in load(path).scales
        for framework in load(path).frameworks
        for arm in load(path).arms
    }
    assert {c: c.problem for c in checked if c.problem is not None} == {}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_toy_changes_the_scale_and_not_the_algorithm(path: Path) -> None:
    paper, toy = load(path, "paper"), load(path, "toy")
    assert (toy.algorithm, toy.arms, toy.frameworks) == (paper.algorithm, paper.arms, paper.frameworks)
    needed = {name for definition in algorithms().values() for name in definition.needs} | {"lora_rank", "lora_alpha"}
    for name in needed & set(paper.hyperparameters):
        assert toy.hyperparameters[name] == paper.hyperparameters[name], name
    assert toy.name == f"{paper.name}-toy"
    assert not toy.published, "the paper's numbers are not a toy run's"


@pytest.mark.parametrize("scale", ["paper", "toy"])
@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_what_a_run_keeps_is_the_recipe_by_itself(path: Path, scale: str, tmp_path: Path) -> None:
    kept = tmp_path / "recipe.yaml"
    kept.write_text(load_at_scale(path, scale)[1])
    assert load(kept) == load(path, scale)


def test_a_shared_file_is_filled_in_and_the_recipes_own_keys_win(tmp_path: Path) -> None:
    base = {"a": {"x": 1, "y": {"value": 1, "note": "old"}}, "b": 1, "gone": 1}
    own = {"extends": ["base"], "a": {"y": {"value": 2}}, "gone": None, "c": None}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    found = compose.composed(tmp_path / "own.yaml", tmp_path)
    assert found == {"a": {"x": 1, "y": {"value": 2}}, "b": 1, "c": None}


def test_a_shared_file_may_extend_others_but_not_itself(tmp_path: Path) -> None:
    for name, content in {
        "own": {"extends": ["middle"], "a": 1},
        "middle": {"extends": ["base"], "b": 2, "gone": None},
        "base": {"a": 3, "b": 3, "c": 3, "gone": 3},
        "one": {"extends": ["other"]},
        "other": {"extends": ["one"]},
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    assert compose.composed(tmp_path / "own.yaml", tmp_path) == {"a": 1, "b": 2, "c": 3}
    with raises_code("recipe-extends-itself", "other.yaml: extends 'one'"):
        compose.composed(tmp_path / "one.yaml", tmp_path)


MISTAKES = {
    "unknown hyperparameter": (
        "unknown-key",
        "hyperparameters.promts",
        {"promts": {"value": 1, "source": "fork"}},
        "prompts",
    ),
    "kind of value": (
        "value-not-allowed",
        "hyperparameters.prompts.value='64'",
        {"prompts": {"value": "64", "source": "fork"}},
        "whole",
    ),
    "source": (
        "value-not-allowed",
        "prompts.source='hearsay'",
        {"prompts": {"value": 64, "source": "hearsay"}},
        "second-hand",
    ),
    "choice without reason": (
        "note-missing",
        "hyperparameters.prompts",
        {"prompts": {"value": 64, "source": "choice"}},
        "note",
    ),
    "uneven updates": ("value-not-allowed", "64 prompts", {"updates": {"value": 3, "source": "fork"}}, ""),
    "no key of a setting": ("unknown-key", "hyperparameters.top_p.why", {"top_p": {"value": 1, "why": ""}}, "source"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_hyperparameter_is_refused(mistake: str, tmp_path: Path) -> None:
    code, named, settings, allowed = MISTAKES[mistake]
    refused(tmp_path, {"hyperparameters": settings}, code, named, allowed)


WRONG = {
    "algorithm": ({"algorithm": {"name": "PPO"}}, "unknown-algorithm", "algorithm.name='PPO'", "GRPO-Token-TIS"),
    "an arm's algorithm": (
        {"arms": {"fp16": {"algorithm": "PPO"}}},
        "unknown-algorithm",
        "arms.fp16.algorithm='PPO'",
        "GSPO",
    ),
    "what it needs": ({"algorithm": {"name": "DAPO"}}, "key-missing", "hyperparameters.dual_clip", "DAPO"),
    "not on the framework": (
        {"algorithm": {"name": "PG-Seq-IS"}},
        "algorithm-not-supported",
        "'PG-Seq-IS'",
        "openrlhf: null",
    ),
    "a toy's algorithm": (
        {"toy": {"hyperparameters": {"clip_low": {"value": 0.1, "source": "fork"}}}},
        "key-refused",
        "toy.hyperparameters.clip_low",
        "response_tokens",
    ),
    "a toy's world": ({"toy": {"world": "atari"}}, "value-not-allowed", "toy.world='atari'", "toy"),
    "strategy": ({"verl": {"strategy": "veomni"}}, "value-not-allowed", "verl.strategy='veomni'", "megatron"),
    "rollout": (
        {"arms": {"fp16": {"rollout": "fp61"}}},
        "not-a-precision",
        "arms.fp16.rollout='fp61'",
        "fp16, bf16, fp32",
    ),
    "published arm": ({"published": {"fp61": []}}, "unknown-arm", "published.fp61", "bf16, fp16"),
    "shared file": ({"extends": ["shared/sane"]}, "recipe-not-found", "'shared/sane'", "shared/sanity"),
    "placeholder": (
        {"model": {"path": "{world.model}"}},
        "unknown-placeholder",
        "model.path='{world.model}'",
        "{math_reward}",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_together_is_refused(wrong: str, tmp_path: Path) -> None:
    content, code, named, allowed = WRONG[wrong]
    refused(tmp_path, content, code, named, allowed)


def refused(folder: Path, content: dict[str, object], code: str, named: str, allowed: str) -> None:
    """``content`` on top of a shipped recipe is one clear error."""
    base = yaml.safe_load(load_at_scale(find("sanity-grpo"), "paper")[1].replace("scale: paper", "")) | {
        "toy": compose.read(find("sanity-grpo").parent / "shared" / "toy.yaml")["toy"]
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    path = folder / "wrong.yaml"
    path.write_text(yaml.safe_dump({"extends": ["base"], **content}))
    with raises_code(code, "wrong.yaml", named, allowed):
        load(path)


def test_a_scale_that_is_none() -> None:
    with raises_code("unknown-scale", "tiny", "paper, toy"):
        load(find("sanity-grpo"), "tiny")


def test_the_ablation_sets_each_side_by_itself() -> None:
    recipe: Recipe = load(find("ablation-train-rollout"))
    pairs = {(arm.precision, arm.rollout or arm.precision) for arm in recipe.arms.values()}
    assert pairs == {("bf16", "bf16"), ("bf16", "fp16"), ("bf16", "fp32"), ("fp16", "bf16"), ("fp16", "fp16")}
