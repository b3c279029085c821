# SPDX-License-Identifier: Apache-2.0
"""A trace of vLLM's modules names the one that overflowed first, in a real engine on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fp16_patch.engines.vllm.rollout_trace import TracedEngine, without_trace
from fp16_patch.engines.vllm.trace import TRACE_START, TRACE_TAKE, RolloutTrace
from fp16_patch.engines.vllm.trace_report import first_not_finite, render, save, summarize
from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow

HERE = Path(__file__).parent
WIDE = "model.layers.1.mlp.down_proj"


def row(module: str, order: int, peak: float | None, bad: float = 0.0, overflow: int | None = None) -> ModuleRow:
    return ModuleRow(module, "Linear", "float16", True, order, peak, bad, overflow, None, None, None, None)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("traced")
    command = [sys.executable, str(HERE / "traced_engine.py"), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


def test_a_real_engine_names_the_module_that_overflowed_first(found: dict) -> None:
    assert found["started"] == [True]
    assert found["report"]["first"] == WIDE, found["summary"]
    assert found["summary"].startswith(f"first module not finite in vLLM: {WIDE} (RowParallelLinear, ")
    assert "peak before it" in found["summary"]
    assert "in model.layers.0.mlp.down_proj" in found["summary"]
    assert found["rows"]["model.layers.0.mlp.down_proj"][1] == 0, "modules before it are finite"
    assert found["rows"]["model.norm"][1] > 0, "and those after it are not"


def test_a_trace_changes_no_token_and_ends_when_it_is_taken(found: dict) -> None:
    plain, traced, after = found["tokens"]
    assert plain == traced == after
    assert found["after"] == 0


def test_a_compiled_engine_is_known_to_call_no_module(found: dict) -> None:
    assert (found["eager"], found["compiled"]) == (True, False)


@pytest.mark.parametrize("eager", [False, True])
def test_where_no_module_is_called_the_error_says_how_to_call_them(eager: bool) -> None:
    asked = []
    nothing = json.dumps({"rows": [], "weights": {}})
    replies = {TRACE_START: [eager], TRACE_TAKE: [nothing]}
    engine = TracedEngine(lambda method: replies[method], asked.append, enforce_eager="--vllm.enforce_eager")
    with pytest.raises(RuntimeError, match="hooks do not fire; run again with --vllm"):
        engine.trace([[1, 2]])
    assert asked == ([[[1, 2]]] if eager else []), "no request is sent for nothing"


def test_the_report_has_every_module_and_the_text_those_near_the_first(tmp_path: Path) -> None:
    rows = [row(f"layers.{n}", n, float(n)) for n in range(30)]
    rows[20:] = [row("wide", 20, 5e4, 0.25, 20), *(row(f"after.{n}", n, None, 1.0) for n in range(21, 30))]
    trace = RolloutTrace(rows, {"wide.weight": 0.5})
    text = render(trace, {"step": 3, "answer": 7})
    assert "step 3, answer 7" in text
    assert "layers.13 " not in text
    assert next(line for line in text.splitlines() if line.endswith("<- first")).startswith("wide ")
    assert "peak before it 19 in layers.19; weights are inf or NaN: wide.weight (50 %)" in summarize(trace)
    path = save(trace, {"step": 3}, tmp_path, "rollout_overflow")
    document = json.loads(path.read_text())
    assert (document["step"], document["first"], len(document["modules"])) == (3, "wide", 30)
    assert path.with_suffix(".txt").is_file()


def test_the_largest_peaks_come_first_where_everything_is_finite() -> None:
    text = render(RolloutTrace([row("small", 0, 1.0), row("large", 1, 6e4)], {}), {"step": 3})
    assert "modules, largest peaks first" in text
    assert text.index("\nlarge ") < text.index("\nsmall ")


def test_inputs_that_are_not_finite_are_named_where_no_module_is_to_blame() -> None:
    rows = [row("embed", 0, None, 1.0), row("head", 1, None, 1.0)]
    assert first_not_finite(rows) is rows[0]
    assert first_not_finite(rows[:0]) is None
    assert summarize(RolloutTrace([row("embed", 0, 32752.0)], {})) == (
        "every module is finite in vLLM; largest finite activation 3.275e+04 in embed, 1.0 bits below 65504"
    )


def test_only_the_message_of_a_remote_error_is_shown() -> None:
    remote = RuntimeError("ray::vLLMHttpServer.generate()\n  File x.py, line 1\nValueError: too long\n")
    assert without_trace(remote) == "no trace of vLLM's modules: ValueError: too long"
    assert without_trace(TimeoutError()) == "no trace of vLLM's modules: TimeoutError"
