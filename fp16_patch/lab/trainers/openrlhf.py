# SPDX-License-Identifier: Apache-2.0
"""An arm on OpenRLHF: its own options, started through ``fp16-patch run``, whose settings come before the ``--``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.launcher import OPENRLHF
from fp16_patch.lab.launch.command import Command, Job
from fp16_patch.lab.launch.preflight import Needs, count
from fp16_patch.lab.recipes.overrides import assignments, merge, render
from fp16_patch.lab.trainers.openrlhf_composition import composed as composed
from fp16_patch.lab.trainers.openrlhf_hyperparameters import EVALUATES_EVERY as EVALUATES_EVERY
from fp16_patch.lab.trainers.openrlhf_hyperparameters import LACKS as LACKS
from fp16_patch.lab.trainers.openrlhf_hyperparameters import arguments

MODULE = "fp16_patch.cli"
OPTIONS = "arguments"
PRECISIONS = ("bf16", "fp16")
"""What ``--ds.param_dtype`` takes."""

PHASES = (
    ("fp16_patch: precision", "the arguments are accepted; starting Ray"),
    ("Started a local Ray instance", "Ray is up; its processes import OpenRLHF and vLLM"),
    (" dataset: ", "reading the data"),
    (" Actor(", "the training model is built"),
    ("Initializing a V1 LLM engine", "starting vLLM"),
    ("init_process_group: master_address", "vLLM is up, weights can be synchronised"),
    ("Episode [", "rollout and update of the first step"),
)
_OURS = (
    "ckpt.output_dir",
    "ckpt.path",
    "ds.param_dtype",
    "logger.tensorboard_dir",
    "fp16_patch.report_path",
    "fp16_patch.train_dtype",
)
"""Options the launcher sets itself, from the arm's precision and its folder."""

_PLACES = {
    "model.path": "actor.model_name_or_path",
    "data.train": "data.prompt_dataset",
    "data.val": "eval.dataset",
    "data.reward": "reward.remote_url",
}
_FILES = [key for place, key in _PLACES.items() if place != "model.path"]
_MODELS = ("actor", "ref", "critic", "reward")

Values = Mapping[str, object]


def check(key: str, value: object) -> Iterator[Fp16PatchError]:
    if not re.fullmatch(r"[A-Za-z_][\w.]*", key):
        yield Fp16PatchError(
            f"{key!r} is not the name of an option", code="invalid-name", allowed="its name without the leading --"
        )
    if key in _OURS:
        yield Fp16PatchError(f"sets {key}, which the launcher sets", code="option-reserved", next_step="remove it")
    items = value if isinstance(value, list) else [value]
    if not all(item is None or isinstance(item, str | int | float) for item in items):
        yield Fp16PatchError(
            f"{key}={value!r} cannot be written as one option",
            code="wrong-type",
            allowed="text, number, a list of these, true for an option without value, false or null to leave it out",
            next_step="give one dotted key per value",
        )


def build_command(job: Job, module: str = MODULE) -> Command:
    """Later sources win: platform, model and data, algorithm, recipe, arm, the user's, and last the launcher's own."""
    recipe, files, platform = job.recipe, job.files, job.platform
    assert recipe.openrlhf is not None
    ranks, nodes = recipe.hardware.ranks, recipe.hardware.nodes
    rollout: Values = {"fp16_patch.rollout_dtype": job.arm.rollout} if job.arm.rollout else {}
    named: list[Values] = [_algorithm(job), recipe.openrlhf.arguments, job.arm.arguments, rollout]
    settings = merge(
        [
            *(assignments({key: group[key] for key in group if _is_setting(key)}) for group in named),
            filter(_is_setting, job.overrides),
            [f"fp16_patch.report_path={render(str(files.precision_report))}"],
        ]
    )
    values: dict[str, object] = {
        **dict(map(_read, platform.openrlhf_arguments(ranks) if platform else [])),
        **job.places(_PLACES, recipe.openrlhf.data),
        **{f"{model}.num_nodes": nodes for model in _MODELS},
        **{f"{model}.num_gpus_per_node": ranks for model in _MODELS},
        **{key: value for group in named for key, value in group.items()},
        **dict(map(_read, job.overrides)),
        "ds.param_dtype": job.arm.precision,
        # Written at the end of every run, so it goes with the run. Checkpoints are only made when asked for.
        "ckpt.output_dir": str(files.folder / "model"),
        "ckpt.path": str(files.checkpoints),
        "logger.tensorboard_dir": str(files.folder / "tensorboard"),
    }
    return Command(
        parts=(
            (sys.executable, "-m", module, "run"),
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


def needs(command: Command) -> Needs:
    """What the command takes for granted."""
    values = dict(_read(word) for word in command.arguments if word.startswith("--") and "=" in word)
    gpus, nodes = "actor.num_gpus_per_node", "actor.num_nodes"
    return Needs(
        gpus=(gpus, count(gpus, values[gpus])),
        nodes=(nodes, count(nodes, values[nodes])),
        model=("actor.model_name_or_path", str(values["actor.model_name_or_path"])),
        files={key: str(values[key]) for key in _FILES if key in values},
        whole="--train.colocate_all" in command.arguments,  # else reference, critic and vLLM have GPUs of their own
    )


def _algorithm(job: Job) -> dict[str, object]:
    """What a recipe with hyperparameters leaves to us."""
    if job.algorithm is None:
        return {}
    values = job.hyperparameters
    return arguments(values, job.recipe.data.problems) | job.algorithm.options("openrlhf", values)


def _is_setting(key: str) -> bool:
    return key.startswith("fp16_patch.")


def _read(word: str) -> tuple[str, object]:
    """``--a.b=1`` or ``a.b=1`` -> its name and value. ``[1,2]`` is a list, a word without value a flag."""
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
    """Training steps, one for each batch of prompts, where the recipe says how many prompts there are."""
    try:
        prompts, batch = (int(str(values[key])) for key in ("data.max_samples", "rollout.batch_size"))
        episodes = int(str(values.get("train.num_episodes", 1)))
    except (KeyError, ValueError):
        return None
    return -(-prompts // batch) * episodes if batch > 0 else None
