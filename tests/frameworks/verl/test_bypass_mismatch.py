# SPDX-License-Identifier: Apache-2.0
"""In bypass mode the first update of each step measures the mismatch that the trainer did not."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(450),
    pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed"),
]

STRATEGIES = pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
Outcomes = Callable[..., list[dict[str, Any]]]


@STRATEGIES
def test_the_first_update_of_a_step_measures_and_no_other(results: Outcomes, strategy: str) -> None:
    for result in results(f"bypass_mode-{strategy}"):
        first, second, third, fourth = result["updates"]
        assert second == fourth == {}, "a policy that has moved is no longer the one that sampled"
        for found, expected in ((first, result["expected"][0]), (third, result["expected"][2])):
            expected["tokens"] *= 2  # of both ranks: verl takes the mean
            assert expected["non_finite_tokens"] == 0
            for name, value in expected.items():
                assert found[f"mismatch/{name}"] == [pytest.approx(value, rel=1e-6)], name


def test_other_losses_are_left_alone(results: Outcomes) -> None:
    """The trainer measures for them, before the update."""
    for result in results("vanilla-fsdp2"):
        assert result["updates"] == [{}] * 4


def test_the_metrics_stand_where_those_of_other_modes_do() -> None:
    from fp16_patch.frameworks.verl.mismatch import strip_actor_prefix

    step = {"actor/mismatch/k3_kl": 1.0, "actor/mismatch/tokens": 8.0, "actor/pg_loss": 2.0}
    strip_actor_prefix(step)
    assert step == {"mismatch/k3_kl": 1.0, "mismatch/tokens": 8.0, "actor/pg_loss": 2.0}
