# SPDX-License-Identifier: Apache-2.0
"""The reward on mathematics, with the real math-verify, loaded and called as the frameworks do."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from fp16_patch.lab.arms.command import MATH_REWARD

pytest.importorskip("math_verify")


def by_its_path() -> ModuleType:
    """The verifier as verl and OpenRLHF load it."""
    spec = importlib.util.spec_from_file_location("custom_module", MATH_REWARD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reward() -> ModuleType:
    return by_its_path()


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        (r"so it is \boxed{25}.", "25", 1),
        (r"so it is \boxed{24}.", "25", 0),
        ("so it is 25.", "25", 0),
        ("", "25", 0),
        (r"\boxed{}", "25", 0),
        # the same in other words
        (r"\boxed{25}", "025", 1),
        (r"\boxed{0.5}", r"\frac{1}{2}", 1),
        (r"\boxed{\dfrac24}", r"\frac{1}{2}", 1),
        (r"\boxed{\frac{1}{3}}", r"\frac{1}{2}", 0),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", 1),
        (r"\boxed{1,000}", "1000", 1),
        (r"\boxed{\{2, 1\}}", r"\{1,2\}", 1),
        (r"\boxed{\{1, 3\}}", r"\{1,2\}", 0),
        (r"\boxed{(2, 1)}", "(1,2)", 0),
        (r"\boxed{[0,1)}", "[0,1)", 1),
        (r"\boxed{1 + x^2}", "x^2+1", 1),
        (r"\boxed{12\text{ cm}}", "12", 1),
        (r"\boxed{90}", r"90^\circ", 1),
        (r"\boxed{Monday}", r"\text{Monday}", 1),
        # the last box counts
        (r"\boxed{3}, no: \boxed{4}", "4", 1),
        (r"\boxed{3}, no: \boxed{4}", "3", 0),
        # cut off
        (r"\boxed{25", "25", 0),
        (r"\boxed{\frac{1}{2", r"\frac{1}{2}", 0),
        (r"it was \boxed{25} and is \boxed{", "25", 0),
    ],
)
def test_verdicts(reward: ModuleType, answer: str, truth: str, score: int) -> None:
    verdict = reward.compute_score(data_source="math", solution_str=answer, ground_truth=truth, extra_info={})
    assert verdict == score


def test_openrlhf_gets_the_verdicts_of_verl(reward: ModuleType) -> None:
    prompts = [r"1+2? Put it in \boxed{}.<|Assistant|>"] * 3
    answers = [r"\boxed{3}<|im_end|>", r"\boxed{4}<|im_end|>", "3"]
    verdict = reward.reward_func([p + a for p, a in zip(prompts, answers, strict=True)], prompts, ["3"] * 3)
    assert verdict["rewards"].tolist() == verdict["scores"].tolist() == [1, 0, 0]


def test_from_threads_that_are_not_the_main_one(reward: ModuleType) -> None:
    found: dict[int, float] = {}

    def ask(number: int) -> None:
        found[number] = reward.compute_score("", rf"\boxed{{{number % 4}}}", "3")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: float(number % 4 == 3) for number in range(16)}


def test_an_answer_that_takes_for_ever_gets_nothing_and_stops_nobody(reward: ModuleType) -> None:
    started = time.monotonic()
    assert reward.compute_score("", r"\boxed{9^{9^{9}}}", "5") == 0
    assert time.monotonic() - started < 4 * reward.LIMIT_S
    assert reward.compute_score("", r"\boxed{5}", "5") == 1


def test_a_judge_that_breaks_is_no_verdict() -> None:
    reward = by_its_path()
    assert reward.compute_score("", r"\boxed{5}", "5") == 1
    reward._JUDGE._process.kill()
    with pytest.raises(RuntimeError, match="exit code -9"):
        reward.compute_score("", r"\boxed{5}", "5")


def test_the_judge_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "reward = runpy.run_path(sys.argv[1])\n"
        "print(reward['compute_score']('', r'\\boxed{5}', '5'), reward['_JUDGE']._process.pid)\n"
    )
    command = [sys.executable, "-c", code, str(MATH_REWARD)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    score, pid = ran.stdout.split()
    assert float(score) == 1
    deadline = time.monotonic() + 10
    while _is_alive(int(pid)):
        assert time.monotonic() < deadline, "the judge outlives the process that started it"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_without_math_verify_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = by_its_path()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="pip install math-verify"):
        reward.compute_score("", r"\boxed{5}", "5")
