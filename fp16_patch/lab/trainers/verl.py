# SPDX-License-Identifier: Apache-2.0
"""An arm on verl: Hydra overrides, with the flag's own option among them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.launch.command import Command, Job
from fp16_patch.lab.launch.preflight import Needs, count
from fp16_patch.lab.recipes.overrides import assignments, key_value, merge, render
from fp16_patch.lab.trainers.verl_composition import composed as composed
from fp16_patch.lab.trainers.verl_hyperparameters import EVALUATES_EVERY as EVALUATES_EVERY
from fp16_patch.lab.trainers.verl_hyperparameters import LACKS as LACKS
from fp16_patch.lab.trainers.verl_hyperparameters import overrides

MODULE = "verl.trainer.main_ppo"
OPTIONS = "overrides"
PRECISIONS = tuple(
    sorted(path.stem for path in (Path(__file__).parents[2] / "frameworks/verl/conf/precision").glob("*.yaml"))
)
"""One Hydra option file each."""

PHASES = (
    ("ray init kwargs", "starting Ray"),
    ("Started a local Ray instance", "Ray is up; the trainer process imports verl"),
    ("dataset len:", "reading the data"),
    ("create worker group", "starting the trainer ranks"),
    ("actor and ref model engine initialized", "the training model is built"),
    ("Initializing a V1 LLM engine", "starting vLLM"),
    ("checkpoint engine manager initialized", "vLLM is up, weights can be synchronised"),
    ("all initialize finished", "everything is up"),
    ("Training Progress", "rollout and update of the first step"),
)
_OURS = (
    "precision@_global_",
    "fp16_patch.report_path",
    "hydra.run.dir",
    "trainer.default_local_dir",
    "trainer.experiment_name",
    "trainer.logger",
)
"""Keys the launcher sets itself, so that progress and reports find what they read."""

_PLACES = {
    "model.path": "actor_rollout_ref.model.path",
    "data.train": "data.train_files",
    "data.val": "data.val_files",
    "data.reward": "reward.custom_reward_function.path",
}
_POOLS = ("reward.reward_model.enable_resource_pool", "distillation.enabled")
"""What gives GPUs of their own to the reward model, or to teachers."""
_FILES = [key for place, key in _PLACES.items() if place != "model.path"]


def check(key: str, value: object) -> Iterator[Fp16PatchError]:
    if key.lstrip("+~") in _OURS:
        yield Fp16PatchError(f"sets {key}, which the launcher sets", code="option-reserved", next_step="remove it")
    if not _is_plain(value):
        yield Fp16PatchError(
            f"{key}={value!r} cannot be written as one override",
            code="wrong-type",
            allowed="text, number, true, false, null, or a list of these",
            next_step="give one dotted key per value",
        )


def build_command(job: Job, module: str = MODULE) -> Command:
    """Later sources win: platform, model and data, algorithm, recipe, arm, the user's, last the launcher's own keys."""
    recipe, files, platform = job.recipe, job.files, job.platform
    assert recipe.verl is not None
    theirs = [
        assignments(_algorithm(job)),
        assignments(recipe.verl.overrides),
        assignments(job.arm.overrides),
        job.overrides,
    ]
    megatron = dict(map(key_value, merge(theirs))).get("model_engine") == "megatron"
    hardware = {"trainer.n_gpus_per_node": recipe.hardware.ranks, "trainer.nnodes": recipe.hardware.nodes}
    merged = merge(
        [
            platform.verl_overrides(recipe.hardware.ranks, megatron=megatron) if platform else [],
            assignments({**job.places(_PLACES, recipe.verl.data), **hardware}),
            *theirs,
            [
                f"trainer.experiment_name={render(f'{recipe.name}-{job.arm_name}')}",
                "trainer.logger=[console,file]",
                f"trainer.default_local_dir={render(str(files.checkpoints))}",
                f"hydra.run.dir={render(str(files.folder / 'hydra'))}",
                f"+precision@_global_={job.arm.precision}",
                f"fp16_patch.report_path={render(str(files.precision_report))}",
                *([f"fp16_patch.rollout_dtype={job.arm.rollout}"] if job.arm.rollout else []),
            ],
        ]
    )
    steps = dict(map(key_value, merged)).get("trainer.total_training_steps", "")
    return Command(
        parts=((sys.executable, "-m", module), *((override,) for override in merged)),
        environment={
            "VERL_FILE_LOGGER_PATH": str(files.metrics),
            "HYDRA_FULL_ERROR": "1",
            **(platform.environment(files.folder, megatron=megatron) if platform else {}),
            **job.instruments,
        },
        total_steps=int(steps) if steps.isdecimal() else None,
    )


def needs(command: Command) -> Needs:
    """What the command takes for granted."""
    values = {key: value.strip("'") for key, value in map(key_value, command.arguments[3:])}
    gpus, nodes = "trainer.n_gpus_per_node", "trainer.nnodes"
    return Needs(
        gpus=(gpus, count(gpus, values[gpus])),
        nodes=(nodes, count(nodes, values[nodes])),
        model=("actor_rollout_ref.model.path", values["actor_rollout_ref.model.path"]),
        files={key: values[key] for key in _FILES if values.get(key, "null") != "null"},
        whole=not any(values.get(key, "").lower() == "true" for key in _POOLS),
    )


def _algorithm(job: Job) -> dict[str, object]:
    """What a recipe with hyperparameters leaves to us."""
    assert job.recipe.verl is not None
    if job.algorithm is None:
        return {}
    values = job.hyperparameters
    return overrides(values, job.recipe.verl.strategy or "fsdp2") | job.algorithm.options("verl", values)


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)
