# SPDX-License-Identifier: Apache-2.0
"""A recipe on OpenRLHF: what its own parser reads is what the recipe says, and mistakes are one clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raising import raises_code

from fp16_patch import envs
from fp16_patch.frameworks.launcher import command_with_flag
from fp16_patch.frameworks.openrlhf import config
from fp16_patch.frameworks.openrlhf.composition import parser
from fp16_patch.lab.arms.command import Command, Job
from fp16_patch.lab.launch.run import run_recipe
from fp16_patch.lab.loading.load import available, find, load
from fp16_patch.lab.recipes.schema import Recipe
from fp16_patch.lab.toy import ToyTask
from fp16_patch.lab.trainers import TRAINERS

Write = Callable[..., Path]
STEPS = "verl:\n  overrides:\n    trainer.total_training_steps: 4\n"


@pytest.fixture
def write_openrlhf(write_recipe: Write, openrlhf: str) -> Write:
    """As ``write_recipe``, for a recipe that runs on OpenRLHF alone."""
    return lambda *edits: write_recipe((STEPS, openrlhf), *edits)


def split(command: Command) -> tuple[list[str], list[str]]:
    """The settings of the launcher, and OpenRLHF's own words."""
    words = list(command.arguments)
    at = words.index("--")
    assert words[1:4] == ["-m", "fp16_patch.cli", "run"]
    assert words[at + 2 : at + 4] == ["-m", "openrlhf.cli.train_ppo_ray"]
    assert command_with_flag(words[4:at], words[at + 1 :])  # `fp16-patch run` takes it
    return words[4:at], words[at + 4 :]


def test_the_command_of_an_arm(write_openrlhf: Write, tmp_path: Path) -> None:
    arguments = "{fp16_patch.rollout_dtype: bf16, ds.zero_stage: 3, ds.packing_samples: true, train.seed: null}"
    recipe = load(write_openrlhf(("{precision: fp16}", f"{{precision: fp16, arguments: {arguments}}}")))
    overrides = ("actor.adam.lr=1e-6", "fp16_patch.loss_scaling.init_scale=1024", "actor.adam.betas=[0.9, 0.95]")
    job = Job(recipe, "fp16", tmp_path / "with space", overrides)
    command = TRAINERS["openrlhf"].build_command(job)
    settings, options = split(command)
    assert config.settings(settings) == {
        "rollout_dtype": "bf16",
        "loss_scaling": {"init_scale": 1024},
        "report_path": str(job.files.precision_report),
    }
    assert {"--ds.param_dtype=fp16", "--ds.zero_stage=3", "--ds.packing_samples", "--actor.adam.lr=1e-6"} <= {*options}
    assert "--ds.zero_stage=2" not in options
    assert not [word for word in options if "train.seed" in word]
    at = options.index("--actor.adam.betas")
    assert options[at : at + 3] == ["--actor.adam.betas", "0.9", "0.95"]
    assert command.environment[envs.METRICS] == str(job.files.metrics)
    assert "\n  --actor.adam.betas 0.9 0.95 \\\n" in command.as_shell()


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [((), 4), (("train.num_episodes=3",), 12), (("rollout.batch_size=3",), 3), (("data.max_samples=many",), None)],
)
def test_the_number_of_steps(write_openrlhf: Write, tmp_path: Path, overrides: tuple[str, ...], steps: int) -> None:
    job = Job(load(write_openrlhf()), "fp16", tmp_path, overrides)
    assert TRAINERS["openrlhf"].build_command(job).total_steps == steps


MISTAKES = {
    "fp32": ("precision: bf16", "precision: fp32", "not-a-precision", "arms.bf16.precision='fp32'", "bf16, fp16"),
    "launcher's key": ("ds.zero_stage:", "ds.param_dtype:", "option-reserved", "ds.param_dtype", ""),
    "launcher's folder": ("ds.zero_stage:", "ckpt.path:", "option-reserved", "ckpt.path", ""),
    "dashes": ("ds.zero_stage:", "--ds.zero_stage:", "invalid-name", "'--ds.zero_stage'", "without the leading --"),
    "nested": ("ds.zero_stage: 2", "ds: {zero_stage: 2}", "wrong-type", "ds={'zero_stage': 2}", "a list of these"),
    "unknown key": ("arguments:", "args: {}\n  arguments:", "unknown-key", "openrlhf.args={}", "arguments"),
    "verl's overrides": (
        "precision: bf16",
        "precision: bf16, overrides: {a: 1}",
        "key-refused",
        "arms.bf16.overrides",
        "",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_naming_key_value_and_what_is_allowed(write_openrlhf: Write, mistake: str) -> None:
    old, new, code, named, allowed = MISTAKES[mistake]
    with raises_code(code, "tiny.yaml", named, allowed):
        load(write_openrlhf((old, new)))


@pytest.mark.parametrize("override", ["ckpt.output_dir=x", "logger.tensorboard_dir=x", "fp16_patch.train_dtype=bf16"])
def test_the_launchers_keys_are_refused_as_overrides(write_openrlhf: Write, tmp_path: Path, override: str) -> None:
    with raises_code("option-reserved", override.partition("=")[0]):
        run_recipe(write_openrlhf(), tmp_path / "run", overrides=[override])


def arms() -> list[Any]:
    recipes = [recipe for recipe in map(load, available()) if "openrlhf" in recipe.frameworks]
    return [pytest.param(recipe, arm, id=f"{recipe.name} {arm}") for recipe in recipes for arm in recipe.arms]


@pytest.mark.parametrize(("recipe", "arm"), arms())
def test_openrlhfs_own_parser_takes_every_argument(recipe: Recipe, arm: str, tmp_path: Path) -> None:
    command = TRAINERS["openrlhf"].build_command(Job(recipe, arm, tmp_path))
    options = vars(parser().parse_args(split(command)[1]))
    assert options["ds.param_dtype"] == recipe.arms[arm].precision
    assert recipe.openrlhf is not None
    for key, value in recipe.openrlhf.arguments.items():
        assert options[key] == value, key
    assert recipe.hardware.ranks == options["actor.num_gpus_per_node"]


def test_the_quickstart_is_that_of_verl_on_another_framework(tmp_path: Path) -> None:
    task = ToyTask(tmp_path / "world", {})
    command = TRAINERS["openrlhf"].build_command(Job(load(find("quickstart-openrlhf")), "fp16", tmp_path))
    _, options = split(command)
    assert f"--data.prompt_dataset={task.train_prompts}" in options
    assert f"--reward.remote_url={task.reward}" in options
    assert "--vllm.sync_backend=gloo" in options
    assert command.environment["FP16_PATCH_PLATFORM"] == "cpu"
    other = load(find("quickstart"))
    assert other.verl is not None
    assert command.total_steps == other.verl.overrides["trainer.total_training_steps"]
    assert f"--rollout.batch_size={other.verl.overrides['data.train_batch_size']}" in options
    assert f"--rollout.n_samples_per_prompt={other.verl.overrides['actor_rollout_ref.rollout.n']}" in options
