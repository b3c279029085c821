# SPDX-License-Identifier: Apache-2.0
"""A run that lacks GPUs, files or the model is refused before anything is written, with a next step."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from raising import check_error

from fp16_patch.cli import main
from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.arms import preflight
from fp16_patch.lab.data import model_folder
from fp16_patch.lab.launch.plan import make_plan
from fp16_patch.lab.launch.run import run_recipe
from fp16_patch.lab.loading.load import find


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four, and no network."""
    monkeypatch.setattr(preflight, "gpus_here", lambda: 4)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def lacks(out: Path, name: str, *overrides: str, framework: str | None = None) -> Fp16PatchError:
    with pytest.raises(Fp16PatchError) as error:
        run_recipe(find(name), out / "run", framework=framework, overrides=overrides)
    assert not (out / "run").exists(), "nothing is written before everything is there"
    return error.value


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("framework", "change"),
    [("verl", "trainer.n_gpus_per_node=4"), ("openrlhf", "actor.num_gpus_per_node=4")],
)
def test_too_few_gpus_missing_files_and_a_missing_model(tmp_path: Path, framework: str, change: str) -> None:
    error = lacks(tmp_path, "sanity-grpo", framework=framework)
    check_error(error, "not-enough-gpus", "sanity-grpo", "8 GPUs", f"add {change}", "--scale toy")
    convert = "fp16-patch recipes data convert --dataset sail/Sanity-Test-R1D-1.5B --out data/sanity"
    check_error(error, "file-not-found", "data/sanity/train", convert)
    check_error(error, "model-not-found", "hf download deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")


@pytest.mark.parametrize(
    ("framework", "override"),
    [("verl", "trainer.nnodes=abc"), ("verl", "trainer.n_gpus_per_node=0"), ("openrlhf", "actor.num_nodes=-1")],
)
def test_a_number_of_gpus_that_is_none(tmp_path: Path, framework: str, override: str) -> None:
    error = lacks(tmp_path, "sanity-grpo", override, framework=framework)
    check_error(error, "value-not-allowed", f"{override}\n  allowed: ")


@pytest.mark.usefixtures("gpus")
def test_what_the_user_changes_counts(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").touch()
    error = lacks(
        tmp_path, "sanity-grpo", "trainer.n_gpus_per_node=4", f"actor_rollout_ref.model.path={tmp_path / 'there'}"
    )
    assert not {"not-enough-gpus", "model-not-found"} & set(error.codes)
    assert "model.path" not in str(error)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("model", "said"), [("empty", "config.json"), ("nosuch/", "nosuch/"), ("a/b/c", "a/b/c")])
def test_a_model_folder_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    error = lacks(tmp_path, "sanity-grpo", f"actor_rollout_ref.model.path={model}")
    check_error(error, "model-not-found", f"actor_rollout_ref.model.path={model}", said)


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("data.train_files=/no/such.parquet", "file-not-found"),
        ("actor_rollout_ref.model.path=/no/such", "model-not-found"),
    ],
)
def test_a_missing_file_next_to_a_toy_task_is_refused(tmp_path: Path, override: str, code: str) -> None:
    check_error(lacks(tmp_path, "quickstart", override), code, override)


@pytest.mark.usefixtures("gpus")
def test_a_reward_that_could_not_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "math_verify" else find_spec(name, *rest)
    )
    check_error(lacks(tmp_path, "sanity-grpo"), "not-installed", "math-verify", "pip install 'fp16-patch[lab]'")


@pytest.mark.usefixtures("gpus")
def test_several_nodes_want_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_error(lacks(tmp_path, "moe-pg-seq-tis"), "not-enough-gpus", "4 nodes", "8 GPUs")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert "not-enough-gpus" not in lacks(tmp_path, "moe-pg-seq-tis").codes


def test_the_commands_can_be_taken_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(find("sanity-pg-seq-is"), tmp_path / "run", arms=["fp16"])
    assert list(plan.commands) == ["fp16"]
    command = plan.commands["fp16"].as_shell()
    for words in (
        "-m verl.trainer.main_ppo",
        "algorithm.rollout_correction.bypass_mode=true",
        "actor_rollout_ref.actor.loss_scale_factor=8192",
        "+precision@_global_=fp16",
    ):
        assert words in command
    assert main(["recipes", "run", "sanity-pg-seq-is", "--print", "--arm", "fp16", "--out", str(tmp_path / "run")]) == 0
    about, printed = capsys.readouterr().out.split("\n\n", 1)
    assert "RAY_ADDRESS" in about
    assert printed == f"# fp16\n{command}\n\n"
    assert not (tmp_path / "run").exists()


def test_the_bounds_of_a_mask_reach_hydra_as_text(tmp_path: Path) -> None:
    command = make_plan(find("sanity-grpo-seq-mis"), tmp_path).commands["fp16"].as_shell()
    assert """'algorithm.rollout_correction.rollout_is_threshold='"'"'1e-9_3'"'"''""" in command


@pytest.mark.parametrize("arguments", [["list"], ["check", "quickstart"]])
def test_recipes_as_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", *arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "quickstart" in {entry.get("name") or entry["recipe"] for entry in told}


def test_the_list_and_a_page_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list"]) == 0
    listed = capsys.readouterr().out
    assert "Figure 1, Sanity GSPO" in listed
    assert "peak training reward 0.84 ±0.01 @800" in listed
    assert main(["recipes", "show", "sanity-gspo"]) == 0
    page = capsys.readouterr().out
    assert "| clip_low | 0.0003 | fork |" in page
    assert "loss = " in page


def test_a_page_of_one_scale(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "sanity-gspo", "--scale", "toy"]) == 0
    page = capsys.readouterr().out
    assert "| response_tokens | 24 | choice |" in page
    assert page.endswith("""```bash
fp16-patch recipes run sanity-gspo --scale toy
fp16-patch recipes run sanity-gspo --framework openrlhf --scale toy
```
""")


@pytest.mark.parametrize("more", [[], ["--yaml"]])
def test_a_page_of_a_scale_it_has_not(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "quickstart", "--scale", "paper", *more]) == 2
    assert "quickstart has no paper scale" in capsys.readouterr().err


def test_check_wants_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "check"]) == 2
    assert "--all" in capsys.readouterr().err


def test_a_path_is_not_to_be_fetched() -> None:
    (error,) = model_folder.missing_model("actor_rollout_ref.model.path", "./nosuch")
    assert error.next_step == "check the path"
