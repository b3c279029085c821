# SPDX-License-Identifier: Apache-2.0
"""Run an arm on OpenRLHF: settings of this package, then ``--``, then OpenRLHF's own options."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.frameworks.openrlhf import composition, config, refusals
from fp16_patch.frameworks.user_command import OPENRLHF
from fp16_patch.lab.arms.command import Command, Job
from fp16_patch.lab.arms.overrides import assignments, merge, render
from fp16_patch.lab.arms.preflight import Needs
from fp16_patch.lab.trainers import openrlhf_hyperparameters
from fp16_patch.lab.trainers.base import Trainer

_MODELS = ("actor", "ref", "critic", "reward")

Values = Mapping[str, object]


class OpenRLHF(Trainer):
    """OpenRLHF, started with its own options."""

    name = "openrlhf"
    module = "fp16_patch.cli"
    options_key = "arguments"
    precisions = ("bf16", "fp16")  # what --ds.param_dtype takes
    phases = (
        ("fp16_patch: precision", "the arguments are accepted; starting Ray"),
        ("Started a local Ray instance", "Ray is up; its processes import OpenRLHF and vLLM"),
        (" dataset: ", "reading the data"),
        (" Actor(", "the training model is built"),
        ("Initializing a V1 LLM engine", "starting vLLM"),
        ("init_process_group: master_address", "vLLM is up, weights can be synchronised"),
        ("Episode [", "rollout and update of the first step"),
    )
    reserved = (
        "ckpt.output_dir",
        "ckpt.path",
        "ds.param_dtype",
        "logger.tensorboard_dir",
        "fp16_patch.report_path",
        "fp16_patch.train_dtype",
    )
    value_types = "text, number, a list of these, true for an option without value, false or null to leave it out"
    nested_lists = False
    places: ClassVar = {
        "model.path": "actor.model_name_or_path",
        "data.train": "data.prompt_dataset",
        "data.val": "eval.dataset",
        "data.reward": "reward.remote_url",
    }
    eval_interval = openrlhf_hyperparameters.OPTIONS["eval_every"]
    lacks = openrlhf_hyperparameters.LACKS

    def check(self, key: str, value: object) -> Iterator[Fp16PatchError]:
        """Yield an error where the key is not an option's name, is reserved, or the value does not fit one option."""
        if not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            what = f"{key!r} is not the name of an option"
            yield Fp16PatchError(what, code="invalid-name", allowed="its name without the leading --")
        yield from super().check(key, value)

    def build_command(self, job: Job, module: str | None = None) -> Command:
        """Return the command; a later source wins: platform, recipe, algorithm, options, arm, user, launcher."""
        recipe, files, platform = job.recipe, job.files, job.platform
        assert recipe.openrlhf is not None
        ranks, nodes = recipe.hardware.ranks, recipe.hardware.nodes
        rollout: Values = {"fp16_patch.rollout_dtype": job.arm.rollout} if job.arm.rollout else {}
        named: list[Values] = [self.algorithm_options(job), recipe.openrlhf.arguments, job.arm.arguments, rollout]
        settings = merge(
            [
                *(assignments({key: group[key] for key in group if _is_setting(key)}) for group in named),
                filter(_is_setting, job.overrides),
                [f"fp16_patch.report_path={render(str(files.precision_report))}"],
            ]
        )
        values: dict[str, object] = {
            **dict(map(_read, platform.openrlhf_arguments(ranks) if platform else [])),
            **job.places(self.places, recipe.openrlhf.data),
            **{f"{model}.num_nodes": nodes for model in _MODELS},
            **{f"{model}.num_gpus_per_node": ranks for model in _MODELS},
            **{key: value for group in named for key, value in group.items()},
            **dict(map(_read, job.overrides)),
            "ds.param_dtype": job.arm.precision,
            # OpenRLHF writes the model at the end of every run, and checkpoints only if asked to.
            "ckpt.output_dir": str(files.folder / "model"),
            "ckpt.path": str(files.checkpoints),
            "logger.tensorboard_dir": str(files.folder / "tensorboard"),
        }
        return Command(
            parts=(
                (sys.executable, "-m", module or self.module, "run"),
                *((setting,) for setting in settings),
                ("--", sys.executable, "-m", OPENRLHF[0]),
                *(option for key, value in values.items() if not _is_setting(key) and (option := _option(key, value))),
            ),
            environment={
                envs.METRICS: str(files.metrics),
                **(platform.openrlhf_environment(files.folder, ranks) if platform else {}),
                **job.instruments,
            },
            total_steps=_steps(values),
        )

    def needs(self, command: Command) -> Needs:
        """Return what the command needs; without ``train.colocate_all`` other models and vLLM have their own GPUs."""
        values = command.options
        whole = "train.colocate_all" in values
        return self._needs(values, "actor.num_gpus_per_node", "actor.num_nodes", whole=whole)

    def compose(self, command: Command) -> Any:
        """Return the parsed arguments, accepted by OpenRLHF's own checks and rewritten by the flag.

        Raises :class:`Fp16PatchError` with OpenRLHF's words or the flag's refusals.
        """
        words = list(command.arguments)
        at = words.index("--")
        settings = config.settings(words[4:at])
        args = composition.parsed(words[at + 4 :])
        precision = config.precision(args, settings)
        if problems := refusals.unsupported(args, precision):
            raise combine_errors(problems)
        config.rewrite(args, precision)
        return args

    def translate(self, job: Job) -> dict[str, object]:
        """Return the job's hyperparameters as OpenRLHF's options."""
        return openrlhf_hyperparameters.arguments(job.hyperparameters, job.recipe.data.problems)


def _is_setting(key: str) -> bool:
    return key.startswith("fp16_patch.")


def _read(word: str) -> tuple[str, object]:
    """Return name and value of ``--a.b=1`` or ``a.b=1``; ``[1,2]`` is a list, a word without a value a flag."""
    key, equals, text = word.removeprefix("--").partition("=")
    if text.startswith("[") and text.endswith("]"):
        return key, [item.strip() for item in text[1:-1].split(",") if item.strip()]
    flags: dict[str, object] = {"true": True, "false": False, "null": None}
    return key, flags.get(text, text) if equals else True


def _option(key: str, value: object) -> tuple[str, ...]:
    if value is None or value is False:
        return ()
    if value is True:
        return (f"--{key}",)
    return (f"--{key}", *map(str, value)) if isinstance(value, list) else (f"--{key}={value}",)


def _steps(values: Values) -> int | None:
    """Return the number of training steps, one for each batch of prompts, or None if it is not known."""
    try:
        prompts, batch = (int(str(values[key])) for key in ("data.max_samples", "rollout.batch_size"))
        episodes = int(str(values.get("train.num_episodes", 1)))
    except (KeyError, ValueError):
        return None
    return -(-prompts // batch) * episodes if batch > 0 else None
