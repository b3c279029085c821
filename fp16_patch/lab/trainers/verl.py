# SPDX-License-Identifier: Apache-2.0
"""Run an arm on verl: Hydra overrides, with the flag's own option among them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

from fp16_patch.lab.arms.command import Command, Job
from fp16_patch.lab.arms.overrides import assignments, key_value, merge, render
from fp16_patch.lab.arms.preflight import Needs
from fp16_patch.lab.trainers import verl_hyperparameters
from fp16_patch.lab.trainers.base import Trainer

_PRECISION_FILES = Path(__file__).parents[2] / "frameworks/verl/conf/precision"
_OWN_GPUS = ("reward.reward_model.enable_resource_pool", "distillation.enabled")
"""Options that give GPUs of their own to the reward model, or to teachers."""


class Verl(Trainer):
    """verl, started with Hydra overrides."""

    name = "verl"
    module = "verl.trainer.main_ppo"
    options_key = "overrides"
    precisions = tuple(sorted(path.stem for path in _PRECISION_FILES.glob("*.yaml")))
    phases = (
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
    reserved = (
        "precision@_global_",
        "fp16_patch.report_path",
        "hydra.run.dir",
        "trainer.default_local_dir",
        "trainer.experiment_name",
        "trainer.logger",
    )
    value_types = "text, number, true, false, null, or a list of these"
    nested_lists = True
    places: ClassVar = {
        "model.path": "actor_rollout_ref.model.path",
        "data.train": "data.train_files",
        "data.val": "data.val_files",
        "data.reward": "reward.custom_reward_function.path",
    }
    eval_interval = verl_hyperparameters.KEYS["eval_every"]
    lacks: ClassVar = {}

    def build_command(self, job: Job, module: str | None = None) -> Command:
        """Return the command; a later source wins: platform, recipe, algorithm, options, arm, user, launcher."""
        recipe, files, platform = job.recipe, job.files, job.platform
        assert recipe.verl is not None
        options = [
            assignments(self.algorithm_options(job)),
            assignments(recipe.verl.overrides),
            assignments(job.arm.overrides),
            job.overrides,
        ]
        megatron = dict(map(key_value, merge(options))).get("model_engine") == "megatron"
        hardware = {"trainer.n_gpus_per_node": recipe.hardware.ranks, "trainer.nnodes": recipe.hardware.nodes}
        merged = merge(
            [
                platform.verl_overrides(recipe.hardware.ranks, megatron=megatron) if platform else [],
                assignments({**job.places(self.places, recipe.verl.data), **hardware}),
                *options,
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
            parts=((sys.executable, "-m", module or self.module), *((override,) for override in merged)),
            environment={
                "VERL_FILE_LOGGER_PATH": str(files.metrics),
                "HYDRA_FULL_ERROR": "1",
                **(platform.environment(files.folder, megatron=megatron) if platform else {}),
                **job.instruments,
            },
            total_steps=int(steps) if steps.isdecimal() else None,
        )

    def needs(self, command: Command) -> Needs:
        """Return what the command needs: GPUs, nodes, the model, data files."""
        values = command.options
        own_gpus = any(values.get(key, "").lower() == "true" for key in _OWN_GPUS)
        return self._needs(values, "trainer.n_gpus_per_node", "trainer.nnodes", whole=not own_gpus)

    def compose(self, command: Command) -> Any:
        """Return Hydra's composition of the command, rewritten by the flag and accepted by verl's own checks."""
        from fp16_patch.frameworks.verl import composition, entry
        from fp16_patch.frameworks.verl.config.changes import rewrite

        config = composition.compose(command.arguments[3:])
        _, changes, _ = entry.examine(config)
        rewrite(config, changes)
        for problem in composition.verl_problems(config)[0]:
            raise problem
        return config

    def translate(self, job: Job) -> dict[str, object]:
        """Return the job's hyperparameters as Hydra keys."""
        strategy = job.recipe.verl.strategy if job.recipe.verl else None
        return verl_hyperparameters.overrides(job.hyperparameters, strategy or "fsdp2")
