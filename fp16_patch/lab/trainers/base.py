# SPDX-License-Identifier: Apache-2.0
"""The interface of a framework that recipes run on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.arms.command import Command, Job
from fp16_patch.lab.arms.preflight import Needs, count


class Trainer(ABC):
    """A framework as the launcher and the validation of recipes use it."""

    name: ClassVar[str]
    """The framework's name in recipes."""
    module: ClassVar[str]
    """The module that is started with ``python -m``."""
    options_key: ClassVar[str]
    """The key of its options in a recipe: in the framework's section, and in an arm."""
    precisions: ClassVar[tuple[str, ...]]
    """The values that an arm's ``precision`` may have."""
    phases: ClassVar[tuple[tuple[str, str], ...]]
    """Pairs of a text in its log and what it means, in the order in which they come before the first step."""
    reserved: ClassVar[tuple[str, ...]]
    """Options that the launcher sets, so that progress and reports find their files."""
    value_types: ClassVar[str]
    """The values that an option may have, in words."""
    nested_lists: ClassVar[bool]
    """Whether an option may be a list of lists."""
    places: ClassVar[Mapping[str, str]]
    """The option for each path that a recipe names: ``model.path``, ``data.train``, ``data.val``, ``data.reward``."""
    eval_interval: ClassVar[str]
    """Its option for the number of steps between evaluations; -1 is none."""
    lacks: ClassVar[Mapping[str, str]]
    """The hyperparameters that it has no option for, with what it does instead."""

    def check(self, key: str, value: object) -> Iterator[Fp16PatchError]:
        """Yield an error for everything that is wrong with one option, from a recipe or from the user."""
        if key.lstrip("+~") in self.reserved:
            yield Fp16PatchError(f"sets {key}, which the launcher sets", code="option-reserved", next_step="remove it")
        if not _is_plain(value, self.nested_lists):
            yield Fp16PatchError(
                f"{key}={value!r} cannot be written as one option",
                code="wrong-type",
                allowed=self.value_types,
                next_step="give one dotted key per value",
            )

    @abstractmethod
    def build_command(self, job: Job, module: str | None = None) -> Command:
        """Return the command of the job's arm; ``module`` is started in place of the trainer's own."""

    @abstractmethod
    def needs(self, command: Command) -> Needs:
        """Return what the command needs: GPUs, nodes, the model, data files."""

    @abstractmethod
    def compose(self, command: Command) -> Any:
        """Return the configuration that the framework would start with, as the flag leaves it; start nothing.

        Raises :class:`Fp16PatchError` if the framework or the flag refuses it.
        """

    @abstractmethod
    def translate(self, job: Job) -> dict[str, object]:
        """Return the job's hyperparameters as options of the framework."""

    def algorithm_options(self, job: Job) -> dict[str, object]:
        """Return the options that follow from the recipe's hyperparameters and algorithm; none without these."""
        if job.algorithm is None:
            return {}
        return self.translate(job) | job.algorithm.options(self.name, job.hyperparameters)

    def _needs(self, values: Mapping[str, str], gpus: str, nodes: str, *, whole: bool) -> Needs:
        model = self.places["model.path"]
        files = {key: values[key] for key in self.places.values() if key != model and values.get(key, "null") != "null"}
        return Needs(
            gpus=(gpus, count(gpus, values[gpus])),
            nodes=(nodes, count(nodes, values[nodes])),
            model=(model, values[model]),
            files=files,
            whole=whole,
        )


def _is_plain(value: object, nested_lists: bool, depth: int = 0) -> bool:
    if isinstance(value, list) and (nested_lists or not depth):
        return all(_is_plain(item, nested_lists, depth + 1) for item in value)
    return value is None or isinstance(value, str | int | float)
