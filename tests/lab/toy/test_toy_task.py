# SPDX-License-Identifier: Apache-2.0
"""The task, its demonstrations and its verifier."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fp16_patch.lab.toy
from fp16_patch.lab.rewards.toy_reward import compute_score
from fp16_patch.lab.toy.task import DATA_SOURCE, Problem, demonstration, distinct_problems, draw, token_limits


def test_every_demonstration_is_right_and_within_the_limits() -> None:
    rng = random.Random(0)
    longest_prompt, longest_response = token_limits(5)
    for _ in range(500):
        problem = draw(5, rng)
        text = demonstration(problem, rng)
        assert compute_score(DATA_SOURCE, text, problem.answer) == 1.0, f"{problem.prompt}{text}"
        assert len(problem.prompt) <= longest_prompt
        assert len(text) + 1 <= longest_response, f"no room for the end of sequence after {text}"


def test_demonstrations_use_many_orders() -> None:
    rng = random.Random(0)
    firsts = {demonstration(Problem((1, 2, 3, 4, 5)), rng)[0] for _ in range(100)}
    assert firsts == set("12345"), "one fixed order would leave the policy without entropy"


@pytest.mark.parametrize(
    ("solution", "score"),
    [
        ("9+6=15+8=23", 1.0),
        ("23", 1.0),
        ("9+6=15+8=24", 0.0),
        ("9+6=15+8=23+", 0.0),
        ("9+6=15+8=023", 0.0),
        ("9+6=15+8=23 ", 0.0),
        ("9+6=15+8=123", 0.0),
        ("9+6=15+8=2", 0.0),
        ("23=", 0.0),
        ("", 0.0),
    ],
)
def test_the_verifier_is_exact(solution: str, score: float) -> None:
    assert compute_score(DATA_SOURCE, solution, "23", {"index": 0}) == score


def by_its_path() -> ModuleType:
    """The verifier as verl and OpenRLHF load it."""
    path = Path(fp16_patch.lab.toy.__file__).parents[1] / "rewards" / "toy_reward.py"
    spec = importlib.util.spec_from_file_location("custom_module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_verl_can_load_the_verifier_by_its_path() -> None:
    module = by_its_path()
    arguments = {"data_source": DATA_SOURCE, "solution_str": "1+2=3", "ground_truth": "3", "extra_info": {}}
    assert module.compute_score(**arguments) == 1.0


def test_openrlhf_gets_the_verdicts_of_verl() -> None:
    """OpenRLHF asks about one query at a time: prompt, answer and special tokens, decoded together."""
    pytest.importorskip("torch")
    for answer, score in (("1+2=3", 1.0), ("1+2=4", 0.0), ("", 0.0), ("3", 1.0)):
        for ending in ("<|im_end|>", "", "<|im_start|><|endoftext|>"):
            verdict = by_its_path().reward_func([f"1+2={answer}{ending}"], ["1+2="], ["3"])
            assert verdict["rewards"].tolist() == verdict["scores"].tolist() == [score], answer + ending


def test_the_verifier_knows_the_special_tokens() -> None:
    pytest.importorskip("transformers")
    from fp16_patch.lab.toy.tokenizer import character_tokenizer

    assert set(by_its_path().SPECIAL_TOKENS) == set(character_tokenizer().all_special_tokens)


def test_no_two_problems_are_permutations() -> None:
    problems = distinct_problems(5, random.Random(0))
    assert len(problems) == 1287  # 13 choose 5
    assert len({tuple(sorted(problem.digits)) for problem in problems}) == 1287
    assert any(list(problem.digits) != sorted(problem.digits) for problem in problems)


def test_importing_the_toy_loads_neither_torch_nor_transformers() -> None:
    heavy = "{'torch', 'transformers', 'tokenizers', 'pyarrow', 'numpy'}"
    code = f"import sys, fp16_patch.lab.toy; print(sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
