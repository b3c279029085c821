# SPDX-License-Identifier: Apache-2.0
"""The loss that runs is the paper's: gradient and value of each framework's own code, as a recipe configures it."""

from __future__ import annotations

import itertools
import math

import pytest
from cases import Case, cases
from fixed_batch import answers
from reference import loss_and_gradient

from fp16_patch.lab.recipes.algorithms import algorithms

pytestmark = pytest.mark.timeout(400)  # the first test waits for both frameworks
RELATIVE = 1e-5
FRAMEWORKS = ("verl", "openrlhf")
WITHOUT_A_CONSTANT = {"openrlhf": {"constant": "tokens"}}
"""OpenRLHF cannot divide by a constant; the recipes' mean over tokens has the same direction."""
OF_ALL = {"clip_low": 0.2, "clip_high": 0.28, "correction_cap": 3.0, "dual_clip": 10.0, "response_tokens": 24.0}


def every_case() -> list[object]:
    return [
        pytest.param(framework, case, id=f"{framework} {case.name} {case.algorithm}")
        for framework in FRAMEWORKS
        for case in cases(framework)
    ]


def apart(found: list[float], wanted: list[float]) -> float:
    """The distance of two vectors over the length of the second."""
    return math.dist(found, wanted) / math.hypot(*wanted)


@pytest.mark.parametrize(("framework", "case"), every_case())
def test_gradient_and_loss_are_the_papers(losses, framework: str, case: Case) -> None:
    instead = None if case.algorithm == "GSPO" else WITHOUT_A_CONSTANT.get(framework, {}).get("constant")
    wanted_loss, wanted = loss_and_gradient(case.algorithm, answers(), case.hyperparameters, instead)
    loss, gradient = losses(framework)[case.name]
    assert apart(gradient, wanted) < RELATIVE, "this recipe trains another algorithm than the one it names"
    assert loss == pytest.approx(wanted_loss, rel=RELATIVE)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_no_algorithm_that_a_framework_has_is_left_out(framework: str) -> None:
    has = {name for name, definition in algorithms().items() if getattr(definition, framework) is not None}
    assert {case.algorithm for case in cases(framework)} == has


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(algorithms(), 2)])
def test_the_batch_tells_any_two_algorithms_apart(one: str, other: str) -> None:
    """In direction too, so that no scale could hide one behind the other."""
    of_gspo = {**OF_ALL, "clip_low": 3e-4, "clip_high": 4e-4}
    gradients = []
    for name in (one, other):
        _, gradient = loss_and_gradient(name, answers(), of_gspo if name == "GSPO" else OF_ALL, "tokens")
        gradients.append([value / math.hypot(*gradient) for value in gradient])
    assert apart(*gradients) > 1000 * RELATIVE


def test_stock_verl_trains_ppo_clip_in_bypass_mode(losses) -> None:
    """The fault itself, without the flag: the same overrides, and no importance weight of an answer anywhere."""
    _, gradient = losses("verl")["PG-Seq-IS without the flag"]
    _, wanted = loss_and_gradient("PG-Seq-IS", answers(), OF_ALL)
    assert apart(gradient, wanted) > 0.1
