# SPDX-License-Identifier: Apache-2.0
"""The stop and its report: which module, by its name in the whole model, whatever rank it is on."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed"),
]

Outcomes = Callable[[str], list[dict[str, Any]]]
NAMED = {
    "layer-1": "decoder.layers.1.self_attention.linear_qkv",
    "layer-tp2": "decoder.layers.1.mlp.linear_fc1",
    "first-stage-pp2": "decoder.layers.0.mlp.linear_fc2",
    "last-stage-pp2": "decoder.layers.1.mlp.linear_fc2",
    "last-chunk-vpp2": "decoder.layers.2.mlp.linear_fc2",
    "expert-ep2": "decoder.layers.1.mlp.experts.local_experts.2.linear_fc1",
}
"""Both pipeline stages call their only layer 0, both ranks of experts their first one 0."""


@pytest.mark.parametrize("case", NAMED)
def test_the_stop_names_the_module_that_overflowed_first(results: Outcomes, case: str) -> None:
    ranks = results(f"stop-{case}")
    for rank in ranks:
        assert rank["updates"] == [{"skipped": True, "scale": scale} for scale in (1024, 512, 256)]
        assert rank["code"] == "training-diverged"
        assert f": {NAMED[case]}\n" in rank["error"]
        assert "actor" in rank["error"]
        assert "fp32_modules" not in rank["error"], "Megatron cannot keep single modules in FP32"
        assert "use BF16" in rank["error"]
    assert len({rank["error"] for rank in ranks}) == 1
    report = ranks[0]["report"]
    assert report["suspects"] == [NAMED[case]]
    assert report["loss_scale"] == 256, "the scale of the update that failed"
    assert f"of {NAMED[case]}, is finite" not in report["cause"]
    assert report["parameters"], "gradients lie in Megatron's own buffers"
    assert not report["weights"]


@pytest.mark.parametrize("case", ["loss-pp2", "last-micro-batch-pp2"])
def test_a_bad_loss_is_seen_where_the_last_stage_is(results: Outcomes, case: str) -> None:
    ranks = results(f"stop-{case}")
    assert len({rank["error"] for rank in ranks}) == 1
    report = ranks[0]["report"]
    assert report["case"] == "loss"
    assert report["losses"]["nonfinite"]
    assert (report["losses"]["peak"] is None) == (case == "loss-pp2"), "one micro-batch of two is good"


def test_without_a_batch_to_run_again_it_stops_all_the_same(results: Outcomes) -> None:
    (found,) = results("stop-unseen")
    assert found["code"] == "training-diverged"
    assert "critic" in found["error"]
    assert "1024 -> 512 after 1 -> 256 after 2 -> 128 after 3" in found["error"], "the scales"


def test_a_traced_update_is_the_update_that_would_have_been(results: Outcomes) -> None:
    for traced, plain in zip(results("trace-2-pp2"), results("trace-None-pp2"), strict=True):
        assert traced["digest"] == plain["digest"]
        assert traced["outputs"] == plain["outputs"]
        assert traced["grad_scale"]
        assert plain["modules"] == []


def test_a_trace_runs_through_all_stages_in_order(results: Outcomes) -> None:
    (first, last) = results("trace-2-pp2")
    assert first["modules"] == last["modules"]
    for order, names in (("modules", first["modules"]), ("backwards", first["backwards"][::-1])):
        places = [names.index(name) for name in ("embedding", "decoder.layers.0", "decoder.layers.1", "output_layer")]
        assert places == sorted(places), f"{order}: {names}"
