# SPDX-License-Identifier: Apache-2.0
"""From answers to the files: judged by the reward, the range kept, what nobody wrote here left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raising import raises_code

from fp16_patch.cli import main
from fp16_patch.lab.data import sampling, scoring
from fp16_patch.lab.data.judging import AnswerLengths, judge
from fp16_patch.lab.data.output import Output
from fp16_patch.lab.data.problem import Message, Problem, user_message
from fp16_patch.lab.data.sample_store import Sampled, SampleStore
from fp16_patch.lab.data.selection import Selection
from fp16_patch.lab.data.settings import Sampling
from fp16_patch.lab.rewards.exact_reward import compute_score

parquet = pytest.importorskip("pyarrow.parquet")


def problem(number: int) -> Problem:
    return Problem(user_message(f"{number}?"), str(number), "source")


def answered(asked_for: Problem, right: int, of: int) -> Sampled:
    answers = (rf"\boxed{{{asked_for.answer}}}",) * right + ("no idea",) * (of - right)
    return Sampled(asked_for.key, answers, (2,) * of, of - right)


def test_the_range_includes_its_ends() -> None:
    selection: Selection[int] = Selection((0.2, 0.8))
    for solved in range(11):
        selection.add(solved, solved, 10)
    assert selection.kept == [2, 3, 4, 5, 6, 7, 8]
    assert selection.histogram() == [1, 1, 1, 1, 1, 1, 1, 1, 1, 2]
    assert selection.mean_rate() == 0.5
    assert selection.mean_rate([8]) == 0.8


def test_judged_in_other_processes_and_in_the_order_of_the_problems(tmp_path: Path) -> None:
    answers = SampleStore(tmp_path)
    problems = [problem(number) for number in range(6)]
    answers.append([answered(p, right, 5) for right, p in reversed(list(enumerate(problems)))])
    answers.append([answered(problem(99), 5, 5)])
    selection, lengths = judge(scoring.REWARDS["exact"], problems, answers, (0.2, 0.8), lambda _: None)
    assert list(selection.rates.values()) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert selection.kept == problems[1:5]
    assert lengths == AnswerLengths(answers=30, answer_tokens=60, answers_cut_off=15)


@pytest.mark.parametrize(
    ("body", "right"),
    [
        ("return 1.0 if 'boxed' in solution_str else 0", 2),
        ("return 0.5", 0),
        ("return {'score': 1 if 'boxed' in solution_str else -1}", 2),
        ("return {'score': -1, 'acc': 'no' in solution_str}", 3),
    ],
)
def test_any_reward_that_verl_takes(tmp_path: Path, body: str, right: int) -> None:
    path = tmp_path / "reward.py"
    path.write_text(f"def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    {body}\n")
    case = scoring.ScoringCase("source", "1", answered(problem(1), 2, 5).answers)
    assert list(scoring.count_solved(scoring.reward_file(str(path)), [case])) == [right]


def test_a_reward_that_fails_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "reward.py"
    path.write_text("def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return 1 / 0\n")
    cases = [scoring.ScoringCase("source", "1", ("1",))] * 100
    with raises_code("reward-failed", "ZeroDivisionError", "next step"):
        list(scoring.count_solved(path, cases))


def test_a_worker_that_dies_is_one_error_too(tmp_path: Path) -> None:
    path = tmp_path / "reward.py"
    path.write_text("import os\ndef compute_score(*_):\n    os._exit(1)\n")
    with raises_code("reward-failed", "BrokenProcessPool"):
        list(scoring.count_solved(path, [scoring.ScoringCase("source", "1", ("1",))]))


@pytest.mark.parametrize(
    ("contents", "code", "said"),
    [
        (None, "reward-not-found", "reward.py"),
        ("", "reward-unusable", "compute_score"),
        ("compute_score = 3", "reward-unusable", "compute_score"),
        ("def compute_score(:", "reward-unusable", "SyntaxError"),
        ("import no_such_module", "reward-unusable", "ModuleNotFoundError"),
    ],
)
def test_a_reward_that_is_none(tmp_path: Path, contents: str | None, code: str, said: str) -> None:
    path = tmp_path / "reward.py"
    if contents is not None:
        path.write_text(contents)
    with raises_code(code, said):
        scoring.reward_file(str(path))


@pytest.mark.parametrize(
    ("answer", "score"),
    [(r"so \boxed{a b}", 1), (r"\boxed{ab}", 0), ("reckon\n#### a b", 1), (" a b\n", 1), ("a b c", 0), ("", 0)],
)
def test_the_exact_match(answer: str, score: int) -> None:
    assert compute_score("", answer, "a b") == score


def test_the_files_of_both_frameworks(tmp_path: Path) -> None:
    output = Output(tmp_path, "mine")
    output.write([problem(1), problem(2)], {"kept": 2}, [0.25, 0.5])
    rows: list[dict[str, Any]] = parquet.read_table(output.parquet).to_pylist()
    assert rows[1] == {
        "data_source": "source",
        "prompt": [{"role": "user", "content": "2?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"split": "mine", "index": 1, "solve_rate": 0.5},
    }
    assert [json.loads(line) for line in output.jsonl.read_text().splitlines()] == [
        {"input": "1?", "label": "1"},
        {"input": "2?", "label": "2"},
    ]
    manifest = json.loads(output.manifest.read_text())
    assert manifest["kept"] == 2
    assert set(manifest["files"]) == {"mine.parquet", "mine.jsonl"}
    assert "python" in manifest["versions"]
    assert {path.name for path in tmp_path.iterdir()} == {"mine.parquet", "mine.jsonl", "mine.manifest.json"}
    output.check({})
    output.write([problem(3)], {})
    assert len(parquet.read_table(output.parquet)) == 1


def test_a_system_message_makes_every_line_a_chat(tmp_path: Path) -> None:
    chat = Problem((Message("system", "S"), Message("user", "Q")), "1", "source")
    output = Output(tmp_path)
    output.write([problem(1), chat], {})
    first, second = (json.loads(line)["input"] for line in output.jsonl.read_text().splitlines())
    assert first == [{"role": "user", "content": "1?"}]
    assert [turn["role"] for turn in second] == ["system", "user"]


def test_verl_reads_what_is_written(tmp_path: Path) -> None:
    dataset = pytest.importorskip("verl.utils.dataset.rl_dataset")
    omegaconf = pytest.importorskip("omegaconf")
    from fp16_patch.lab.toy.tokenizer import character_tokenizer

    Output(tmp_path).write([problem(1), problem(2)], {})
    config = omegaconf.OmegaConf.create({"cache_dir": str(tmp_path), "filter_overlong_prompts_workers": 1})
    read = dataset.RLHFDataset(str(tmp_path / "train.parquet"), character_tokenizer(), config)
    assert [row["reward_model"]["ground_truth"] for row in (read[0], read[1])] == ["1", "2"]
    assert read[0]["raw_prompt"] == [{"role": "user", "content": "1?"}]


def test_files_of_somebody_else_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"problem": "Q", "answer": "1"}\n')
    (tmp_path / "train.parquet").write_text("precious")
    words = ["recipes", "data", "convert", "--dataset", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path)]
    assert main(words) == 2
    assert "train.parquet" in capsys.readouterr().err
    assert (tmp_path / "train.parquet").read_text() == "precious"
    assert main([*words, "--name", "other"]) == 0
    assert "1 problems" in capsys.readouterr().out
    assert main([*words, "--name", "other"]) == 0


def test_files_of_another_dataset_or_of_a_sanity_test_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"problem": "{name}", "answer": "1"}}\n')
    words = ["recipes", "data", "convert", "--out", str(tmp_path / "out"), "--dataset"]
    assert main([*words, str(tmp_path / "a.jsonl")]) == 0
    before = (tmp_path / "out" / "train.jsonl").read_text()
    assert main([*words, str(tmp_path / "b.jsonl")]) == 2
    said = capsys.readouterr().err
    assert f"with dataset {tmp_path / 'a.jsonl'}, not {tmp_path / 'b.jsonl'}" in said
    assert "--name" in said
    manifest = json.loads((tmp_path / "out" / "train.manifest.json").read_text())
    (tmp_path / "out" / "train.manifest.json").write_text(json.dumps({**manifest, "sampling": {"model": "m"}}))
    assert main([*words, str(tmp_path / "a.jsonl")]) == 2
    assert "with model m, not none" in capsys.readouterr().err
    assert (tmp_path / "out" / "train.jsonl").read_text() == before


def test_all_that_is_missing_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("huggingface_hub")
    out = tmp_path / "out"
    words = ["--model", "no/model", "--dataset", "no/data", "--reward", str(tmp_path / "no.py"), "--out", str(out)]
    assert main(["recipes", "data", "sanity", *words]) == 2
    said = capsys.readouterr().err
    assert "3 problems" in said
    for words_said in ("hf download no/model", "hf download no/data --repo-type dataset", "no.py: no such file"):
        assert words_said in said
    assert not out.exists()
    out.write_text("a file")
    assert main(["recipes", "data", "sanity", *words]) == 2
    assert "4 problems" in (said := capsys.readouterr().err)
    assert f"--out {out} is not a folder" in said


def test_a_range_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "m", "--dataset", "d", "--out", str(tmp_path), "--keep", "0.8", "0.2"]
    assert main(["recipes", "data", "sanity", *words]) == 2
    assert "0 <= LOW <= HIGH <= 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--temperature", "-1"], "--temperature -1\n  allowed: more than 0, at most 2"),
        (["--temperature", "0"], "0 only with --samples 1"),
        (["--temperature", "nan"], "--temperature: 'nan'\n  allowed: a number"),
        (["--top-p", "3"], "--top-p 3\n  allowed: more than 0, at most 1"),
        (["--top-p", "0", "--temperature", "3"], "2 problems, nothing was started"),
        (["--seed", "-1"], "--seed -1"),
        (["--vllm", "dtype=bfloat16"], "--vllm dtype=...: the command sets it\n  next step: use --dtype"),
        (["--vllm", "max_model_len=10"], "use --max-tokens"),
        (["--vllm", "max_tokens=3"], "use --max-tokens"),
        (["--vllm", "a=["], "--vllm: 'a=['"),
        (["--vllm", "=3"], "--vllm: '=3'"),
        (["--vllm", "a"], "--vllm: 'a'\n  allowed: KEY=VALUE"),
        (["--name", ""], "--name '' cannot be the name of a file"),
        (["--name", "../evil"], "without /"),
        (["--name", ".hidden"], "--name '.hidden'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    out = tmp_path / "out"
    assert main(["recipes", "data", "sanity", "--model", "no/m", "--dataset", "no/d", "--out", str(out), *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "hf download" not in told
    assert not out.exists()


def test_one_greedy_answer_is_fine() -> None:
    assert Sampling("m", samples=1, temperature=0).temperature == 0


def test_a_number_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("0", "-3", "x"):
        assert main(["recipes", "data", "convert", "--dataset", "d", "--out", str(tmp_path), f"--limit={word}"]) == 2
        assert f"--limit: '{word}'\n  allowed: a whole number, 1 or more" in capsys.readouterr().err


def test_every_problem_has_a_seed_of_its_own() -> None:
    seeds = {sampling.seed_of(problem(number), seed) for number in range(50) for seed in (0, 1)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**31 for seed in seeds)
