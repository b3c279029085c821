# SPDX-License-Identifier: Apache-2.0
"""verl's own old-log-prob step under the rollout check, with a real transfer queue: counts, masks, reads."""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fp16_patch.lab.launch.supervisor import Supervisor

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(240),
    pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed"),
]

FACTS = Path(__file__).with_name("rollout_step_facts.py")
ROLLOUT = ("rollout/non_finite_tokens", "rollout/non_finite_answers")
TRAINER = ("trainer/non_finite_tokens", "trainer/non_finite_answers")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the steps left behind. Ray's processes must be gone afterwards whatever happens."""
    log = tmp_path_factory.mktemp("facts") / "log"
    session = Supervisor([sys.executable, str(FACTS)], {"OMP_NUM_THREADS": "1"}, log)
    try:
        deadline = time.monotonic() + 200
        while session.running() and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        session.close()
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
    assert lines, log.read_text()[-3000:]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def counts(fact: dict[str, Any], names: tuple[str, ...]) -> list[float]:
    return [fact["metrics"].get(name) for name in names]


def test_the_check_reads_and_writes_nothing_of_its_own(facts):
    for name in ("finite", "trainer", "no_log_probs"):
        assert facts[name]["calls"] == {"kv_batch_get": 1, "kv_batch_put": 1}, "verl's own"


def test_both_engines_are_counted(facts):
    assert counts(facts["finite"], ROLLOUT + TRAINER) == [0, 0, 0, 0]
    assert counts(facts["trainer"], ROLLOUT + TRAINER) == [0, 0, 2, 1]
    assert counts(facts["no_log_probs"], ROLLOUT + TRAINER) == [None, None, 2, 1]
    assert facts["no_log_probs"]["metrics"]["rollout/non_finite_logits"] == 0


@pytest.mark.parametrize("mode", ["masked", "bypass", "padding"])
def test_a_masked_answer_is_counted_and_leaves_the_queue(facts, mode):
    fact = facts[mode]
    assert counts(fact, (*ROLLOUT, "rollout/masked_answers")) == [2, 1, 1]
    assert fact["masked"] == ["b_0_0"]
    assert fact["response_mask"][:4] == [[1, 1, 1], [1], [0, 0, 0, 0], [1, 1]]
    assert fact["rollout_log_probs"][2] == [0, 0, 0, 0]
    trained = fact["old_log_probs"][2]
    assert trained == ([0, 0, 0, 0] if mode == "bypass" else [-1, -1, -1, -1])


def test_verls_own_metrics_are_of_the_answers_that_stay(facts):
    metrics = facts["masked"]["metrics"]
    assert metrics["training/rollout_probs_diff_max"] == 0, "not NaN"


def test_bypass_mode_has_no_log_probs_of_the_trainer(facts):
    assert counts(facts["bypass"], TRAINER) == [None, None]


def test_padding_is_no_answer(facts):
    assert counts(facts["padding"], TRAINER) == [0, 0], "a row of padding may hold anything"


def test_the_default_stops_before_verl_goes_on(facts):
    assert facts["stopped"]["code"] == "rollout-overflow"
    for part in ("step 3", "2 tokens in 1 of 4 answers", "position 1 of answer 2", "[7, 7, 7]"):
        assert part in facts["stopped"]["error"]
    assert not [name for name in facts["stopped"]["metrics"] if name.startswith(("trainer/", "training/", "actor/"))]


def test_fewer_log_probs_than_tokens_are_refused(facts):
    assert facts["short"]["code"] == "log-probs-incomplete"
    assert "answer 0 has 3 tokens and 2 log-probs" in facts["short"]["error"]
