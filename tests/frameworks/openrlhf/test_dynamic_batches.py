# SPDX-License-Identifier: Apache-2.0
"""Dynamic batches: another number of micro-batches an update trains as one micro-batch an update does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    not (find_spec("openrlhf") and find_spec("deepspeed")), reason="needs openrlhf and DeepSpeed"
)

Results = Callable[[str], list[dict[str, Any]]]
MODELS = pytest.mark.parametrize("model", ["actor-2", "actor-3", "critic-2", "critic-3"])
STAGES = pytest.mark.parametrize("stage", [2, 3])


@pytest.fixture(scope="module")
def cases_run(run_cases: Callable[..., Any]) -> Iterator[Path]:
    """Run all cases once; return the folder of their results."""
    environment = {"DS_ACCELERATOR": "cpu", "FP16_PATCH_PLATFORM": "cpu", "TORCHDYNAMO_DISABLE": "1"}
    with run_cases(Path(__file__).with_name("dynamic_batch_cases.py"), 240, environment) as folder:
        yield folder


@MODELS
def test_the_number_of_micro_batches_changes_no_gradient(results: Results, model: str) -> None:
    for packed, whole in zip(results(f"packed-{model}"), results(f"whole-{model}"), strict=True):
        assert (packed["micro_batches"], whole["micro_batches"]) == ([3, 1, 4], [1, 1, 1])
        assert packed["norms"] == pytest.approx(whole["norms"], rel=1e-3)
        assert packed["counts"] == whole["counts"]
        assert packed["counts"]["updates"] == len(packed["norms"]) == 3, "one update for each step, and none twice"
    assert len({tuple(rank["tokens"]) for rank in results(f"packed-{model}")}) == 2, "uneven rows"


def test_without_the_boundary_zero_2_trains_on_the_last_micro_batch_only(results: Results) -> None:
    for unmarked, whole in zip(results("unmarked-actor-2"), results("whole-actor-2"), strict=True):
        ratios = [wrong / right for wrong, right in zip(unmarked["norms"], whole["norms"], strict=True)]
        assert ratios[1] == pytest.approx(1, rel=1e-3), "one micro-batch"
        assert abs(ratios[0] - 1) > 0.02
        assert abs(ratios[2] - 1) > 0.02, "the patch openrlhf-actor-dynamic-batches has become unnecessary"


@MODELS
def test_an_overflow_in_one_micro_batch_of_one_rank_skips_on_all(results: Results, model: str) -> None:
    for spoilt, clean in zip(results(f"overflow-{model}"), results(f"packed-{model}"), strict=True):
        assert spoilt["skipped"] == [True, False, False]
        assert spoilt["scales"] == [256, 128, 128]
        assert spoilt["norms"][0] is None
        assert spoilt["norms"][1:] == pytest.approx(clean["norms"][1:], rel=1e-3), "a part of the skipped one"
        role = model.partition("-")[0]
        assert spoilt["logged"][f"{role}/update_skipped"] == pytest.approx(1 / 3)


@STAGES
def test_a_bad_loss_of_one_micro_batch_skips_and_leaves_the_scale(results: Results, stage: int) -> None:
    for rank in results(f"nan-actor-{stage}"):
        assert rank["skipped"] == [True, False, False]
        assert rank["scales"] == [256, 256, 256]
        assert rank["counts"]["skipped"] == rank["logged"]["actor/updates_skipped_total/max"] == 1
    assert sum(rank["logged"]["actor/loss_not_finite"] for rank in results(f"nan-actor-{stage}")) >= 1


@STAGES
def test_a_resumed_run_has_the_scale_and_the_gradients_of_the_first(results: Results, stage: int) -> None:
    for rank, clean in zip(results(f"resumed-actor-{stage}"), results(f"packed-actor-{stage}"), strict=True):
        assert rank["scales"] == [128, 128, 128]
        assert (rank["counts"]["updates"], rank["counts"]["skipped"]) == (6, 1)
        assert rank["norms"] == pytest.approx(clean["norms"], rel=1e-3)
