# SPDX-License-Identifier: Apache-2.0
"""Several ranks take every step together or not at all, however the model is spread over them.

The ranks are forked from one process started here, which runs ``rank_cases.py``. verl's own engines, with FSDP1
and FSDP2, are in tests/frameworks/verl.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(450)]

SECONDS = 400

Ranks = list[dict[str, Any]]
Results = Callable[[str], Ranks]


@pytest.fixture(scope="module")
def cases_run(run_cases: Callable[..., Any]) -> Iterator[Path]:
    """All cases, run once; the folder of their results."""
    with run_cases(Path(__file__).with_name("rank_cases.py"), SECONDS, {}) as folder:
        yield folder


def agreed(ranks: Ranks, key: str) -> Any:
    """What every rank returned, the same from all of them."""
    first, *others = (rank[key] for rank in ranks)
    for number, other in enumerate(others, start=1):
        assert other == first, f"rank 0 and rank {number} disagree on {key}"
    return first


UNSHARDED = [
    "fsdp2-layers-1",
    "fsdp2-layers-2",
    "fsdp2-layers-4",
    "fsdp2-2-fused=True",
    "fsdp2-2-sync_every=False",
    "fsdp2-one-row-4",
    "fsdp2-one-row-2-fused=True",
    "fsdp2-offload-2",
    "fsdp2-unclipped",
    "fsdp2-tp-4",
    "hsdp-4-sync_every=False",
    "replicated-2",
    "fsdp1-2",
    "fsdp1-original-4",
    "fsdp1-original-2-sync_every=False",
    "fsdp1-hybrid-4",
]


@pytest.mark.parametrize("wrap", UNSHARDED)
def test_norm_and_peak_are_those_of_the_whole_gradients(results: Results, wrap: str) -> None:
    for update in agreed(results(f"unsharded-{wrap}"), "updates"):
        assert not update["skipped"]
        assert update["norm"] == pytest.approx(update["exact"], rel=1e-6)
        assert update["peak"] <= update["exact_peak"], "one part of the gradients exceeds all of them"
    first = agreed(results(f"unsharded-{wrap}"), "updates")[0]
    assert first["peak"] == first["exact_peak"], "the first update looks at all gradients, later ones at parts in turn"


@pytest.mark.parametrize("wrap", [wrap for wrap in UNSHARDED if wrap != "fsdp1-2"])
def test_weights_become_those_of_an_unsharded_model(results: Results, wrap: str) -> None:
    """torch's clipping and AdamW on the same gradients, put together; steps are of 0.01."""
    for update in agreed(results(f"unsharded-{wrap}"), "updates"):
        assert update["error"] < 1e-6


@pytest.mark.parametrize("wrap", ["fsdp2-one-row-4", "fsdp2-one-row-2-fused=True"])
def test_ranks_without_any_gradient_took_part(results: Results, wrap: str) -> None:
    first, *others = (rank["held"] for rank in results(f"unsharded-{wrap}"))
    assert first == 7
    assert others == [0] * len(others)


FAULTS = pytest.mark.parametrize(
    "wrap",
    [
        "fsdp2-layers-2",
        "fsdp2-4-sync_every=False",
        "fsdp2-2-fused=True",
        "fsdp2-one-row-4",
        "fsdp2-offload-2",
        "fsdp2-tp-4",
        "hsdp-4",
        "replicated-2",
        "fsdp1-2-sync_every=False",
        "fsdp1-original-4",
        "fsdp1-hybrid-4",
    ],
)


@FAULTS
def test_one_bad_value_on_one_rank_skips_the_update_on_all(results: Results, wrap: str) -> None:
    ranks = results(f"faults-{wrap}")
    for tries in zip(*(rank["tries"] for rank in ranks), strict=True):
        fault, hit = agreed(list(tries), "fault"), agreed(list(tries), "hit")
        before, after = agreed(list(tries), "scales")
        assert agreed(list(tries), "skipped") == hit, fault
        assert after == (before / 2 if hit else before), fault
        for rank, one in enumerate(tries):
            assert (one["norm"] is None) == hit, f"{fault}, seen from rank {rank}"
            assert not (hit and one["changed"]), f"{fault}: rank {rank} stepped"


@pytest.mark.parametrize("wrap", ["fsdp2-layers", "fsdp1-original"])
def test_a_bad_loss_of_one_rank_skips_on_all_and_leaves_the_scale(results: Results, wrap: str) -> None:
    bad, overflow, good = agreed(results(f"bad-loss-{wrap}"), "updates")
    assert bad == [True, True, False, 2.0**8, 1], "the last is the rank of the loss"
    assert overflow == [True, False, False, 2.0**7, None]
    assert good == [False, False, True, 2.0**7, None]
    state = agreed(results(f"bad-loss-{wrap}"), "state")
    assert (state["counts"]["skipped"], state["counts"]["losses_not_finite"]) == (2, 1)
    assert state["recent_skips"] == [2, 3]


@FAULTS
def test_the_next_good_update_is_made_by_all_alike(results: Results, wrap: str) -> None:
    ranks = results(f"faults-{wrap}")
    for tries in zip(*(rank["tries"] for rank in ranks), strict=True):
        fault = agreed(list(tries), "fault")
        assert agreed(list(tries), "recovered"), fault
        assert agreed(list(tries), "finite"), fault
    agreed(ranks, "weights")


@FAULTS
def test_the_faults_were_where_they_can_be(results: Results, wrap: str) -> None:
    """Every loss, and every parameter on at least one rank; all but the fewest hit something."""
    tries = results(f"faults-{wrap}")[0]["tries"]
    places = {one["fault"].split(" in ")[1].split(" of ")[0] for one in tries}
    assert places == {one["fault"].split(" in ")[1].split(" of ")[0] for one in tries if one["hit"]}


@pytest.mark.parametrize("unscale", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_torch_s_own_sequence_agrees_too(results: Results, fused: bool, unscale: bool) -> None:
    """Stock, with a fused optimizer and no call of ``unscale_``, asks no other rank."""
    ranks = results(f"torch-{fused=}-{unscale=}")
    start, skipped, stepped = agreed(ranks, "weights")
    assert start == skipped != stepped
    state = agreed(ranks, "state")
    assert (state["counts"]["skipped"], state["counts"]["updates"]) == (1, 2)


def test_scalers_of_two_process_groups_know_nothing_of_each_other(results: Results) -> None:
    ranks = results("two-groups")
    assert [rank["skipped"] for rank in ranks] == [True, True, False, False]
    for rank in ranks:
        assert rank["norm"] == pytest.approx(rank["exact"], rel=1e-6)


def test_a_gradient_that_is_not_summed_over_its_ranks_is_refused(results: Results) -> None:
    """Its norm does not follow from the parts."""
    assert agreed(results("partial"), "code") == "gradient-not-summed"


# A thousand updates with faults.


def test_skips_are_the_faults_and_the_overflows(results: Results) -> None:
    updates = agreed(results("storm"), "updates")
    assert len(updates) == 1000
    for number, (faulty, overflow, skipped, scale, finite) in enumerate(updates):
        what = f"update {number}, scale {scale:g}"
        assert skipped == overflow, what
        assert finite, what
        assert overflow or not faulty, f"{what}: the fault was lost on the way"
    counts = agreed(results("storm"), "counts")
    assert counts["skipped"] == sum(overflow for _, overflow, *_ in updates)


def test_faults_and_real_overflows_both_occurred(results: Results) -> None:
    updates = agreed(results("storm"), "updates")
    assert sum(faulty for faulty, *_ in updates) > 100
    assert sum(overflow and not faulty for faulty, overflow, *_ in updates) > 10


def test_the_scale_reached_its_floor_and_stayed_within_its_bounds(results: Results) -> None:
    """Thirty faults in a row are more backoffs than there is room for above the floor of 2**-4."""
    scales = [scale for *_, scale, _ in agreed(results("storm"), "updates")]
    assert min(scales) == 2.0**-4
    assert max(scales) <= 2.0**31


def test_a_thousand_updates_end_in_the_same_weights(results: Results) -> None:
    agreed(results("storm"), "weights")
