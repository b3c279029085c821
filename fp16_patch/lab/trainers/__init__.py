# SPDX-License-Identifier: Apache-2.0
"""The frameworks a recipe can run on, one module each, behind one interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.launch.command import Command, Job
from fp16_patch.lab.launch.preflight import Needs
from fp16_patch.lab.trainers import openrlhf, verl


class Trainer(Protocol):
    """What the launcher and the validation of recipes ask of a framework."""

    @property
    def MODULE(self) -> str:
        """The module to start with ``python -m``."""

    @property
    def OPTIONS(self) -> str:
        """The key of its options in a recipe: in the framework's section, and in an arm."""

    @property
    def PRECISIONS(self) -> tuple[str, ...]:
        """What an arm's ``precision`` may be."""

    @property
    def PHASES(self) -> tuple[tuple[str, str], ...]:
        """What its log says on the way to the first step, in that order, and the same in our words."""

    @property
    def EVALUATES_EVERY(self) -> str:
        """Its option for the steps between evaluations; -1 is none."""

    @property
    def LACKS(self) -> Mapping[str, str]:
        """Hyperparameters that it has no option for -> what it does instead."""

    def check(self, key: str, value: object) -> Iterator[Fp16PatchError]:
        """What is wrong with one option, from a recipe or from the user."""

    def build_command(self, job: Job, module: str) -> Command:
        """The command of the job's arm."""

    def needs(self, command: Command) -> Needs:
        """What the command takes for granted: GPUs, model, data."""

    def composed(self, command: Command) -> Any:
        """What the framework makes of a command, without starting it; raises where it or the flag refuses it."""


TRAINERS: Mapping[str, Trainer] = {"verl": verl, "openrlhf": openrlhf}
