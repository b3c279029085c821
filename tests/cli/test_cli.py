# SPDX-License-Identifier: Apache-2.0
"""The command as users call it, and the documents generated from the same declarations."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fp16_patch.cli import doctor, main
from fp16_patch.cli import patches as listing
from fp16_patch.frameworks.openrlhf import plan as openrlhf
from fp16_patch.frameworks.openrlhf import reports
from fp16_patch.frameworks.verl.controller import KINDS
from fp16_patch.frameworks.verl.plan import ALL_PATCHES, PLAN
from fp16_patch.patching import Patch, ProcessKind, Release, registry, validate_plan

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def on_the_cpu_platform(monkeypatch):
    """As the recipes run here: without flash-attn, which OpenRLHF imports."""
    monkeypatch.setenv("FP16_PATCH_PLATFORM", "cpu")


def test_doctor_finds_this_environment_ready(capsys):
    assert main(["doctor"]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "Ready: python -m verl.trainer.main_ppo" in out
    assert "Ready: fp16-patch run -- python -m openrlhf.cli.train_ppo_ray" in out
    assert "Hydra config group `precision`: found" in out
    assert all(patch.name in out for patch in (*ALL_PATCHES, *openrlhf.ALL_PATCHES))


def test_doctor_as_json_imports_nothing_heavy():
    code = (
        "import json, sys\nfrom fp16_patch.cli.doctor import examine\nfindings = examine()\n"
        "frameworks = {'torch', 'verl', 'openrlhf', 'deepspeed', 'vllm', 'ray'}\n"
        "print(json.dumps([findings, sorted(frameworks & set(sys.modules))]))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=100).stdout
    findings, heavy = json.loads(out)
    assert heavy == [], "doctor must not import the frameworks it looks at"
    assert findings["ready"] is True
    patches = [patch for found in findings["frameworks"].values() for patch in found["patches"]]
    assert {patch["outcome"] for patch in patches} <= {"would apply", "native"}


def test_doctor_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "installed_version", lambda _: None)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "neither verl nor OpenRLHF is installed" in out
    assert "vLLM is not installed" in out


def test_one_framework_is_enough(monkeypatch, capsys):
    real, absent = doctor.installed_version, {"openrlhf", "deepspeed"}
    monkeypatch.setattr(doctor, "installed_version", lambda names: None if absent & set(names) else real(names))
    assert main(["doctor"]) == 0
    assert "openrlhf is not installed" in capsys.readouterr().out


def test_patches_lists_every_declaration(capsys):
    assert main(["patches", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    names = [row["patch"] for row in listed]
    verl = [patch.name for patch in ALL_PATCHES if patch.name != "vllm-observe-sampling"]
    assert names[: len(verl)] == verl
    assert len(set(names)) == len(names) > len(verl), "vLLM's and the CPU platform's follow, none twice"
    assert all(row["why"] and row["upstream"] and row["remove when"] for row in listed)


def test_hooks_have_a_table_of_their_own_and_scoped_patches_a_mark(monkeypatch, capsys):
    def declared(name, **options):
        fields = {"processes": {ProcessKind.ANY}, "make": abs, "upstream": "u", "remove_when": "r", "reason": "w"}
        fields |= {"kind": "wrap", "parameters": (), "release": Release("acme", "==1")}
        return Patch(name=name, target=f"acme:{name}", **fields, **options)

    listed = [declared("plain"), declared("hook", hook=True), declared("scoped", scoped=True)]
    monkeypatch.setattr(listing, "parts", lambda: {"Part": listed})
    text = listing.as_markdown()
    head, _, hooks = text.partition("## Part: hooks")
    assert "| plain | wrap |" in head
    assert "| scoped | wrap, scoped |" in head
    assert "| hook | every process | acme:hook | acme ==1 | w |" in hooks
    assert "hook |" not in head
    assert main(["patches", "--json"]) == 0
    assert [row["hook"] for row in json.loads(capsys.readouterr().out)] == [False, True, False]


def test_the_plan_is_sound():
    validate_plan(ALL_PATCHES)
    needed = registry.required(ALL_PATCHES, KINDS, {"fsdp", "megatron"})
    assert {*needed, ProcessKind.AGENT_LOOP} == {kind for patch in ALL_PATCHES for kind in patch.processes}
    for kind, patches in needed.items():
        assert all(patch.processes == {kind} for patch in patches)
    shown = {patch.name for patches in needed.values() for patch in patches}
    not_shown = {"verl-weight-receiver-error", "verl-fsdp1-fp32-units", "verl-fsdp2-fp32-units"}
    not_shown |= {"legacy-log-prob-lengths"}  # in processes that write no report
    not_shown |= {"rollout-health-read", "rollout-health-written"}  # open during one call
    assert {patch.name for patch in ALL_PATCHES} - shown == not_shown
    assert {module.partition(".")[0] for module in PLAN} == {"verl", "vllm"}


def test_openrlhf_s_plan_is_sound():
    validate_plan(openrlhf.ALL_PATCHES)
    shown = {patch.name for patches in reports.REQUIRED.values() for patch in patches}
    applied = {patch.name for patch in openrlhf.ALL_PATCHES if not patch.scoped}
    assert applied - shown == {"openrlhf-check-nodes"}, "only the driver has no ledger in the report"
    assert shown < applied
    assert all(module.startswith(("openrlhf.", "deepspeed.", "vllm.")) for module in openrlhf.PLAN)
    for module, patches in openrlhf.PLAN.items():
        assert {patch.target.partition(":")[0] for patch in patches} == {module}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "fp16-patch --help"),
        (["nonsense"], "allowed: doctor, run, patches, recipes"),
        (["docto"], "next step: correct it; did you mean doctor?"),
        (["recipes", "shwo"], "next step: correct it; did you mean show?"),
        (["doctor", "--nonsense"], "fp16-patch doctor --help"),
        (["recipes", "--nonsense", "list"], "fp16-patch recipes --help"),
        (["recipes", "run"], "required: NAME_OR_PATH\n"),
        (["recipes", "run", "quickstart", "--out", "x", "--nonsense=1"], "--nonsense=1"),
        (["recipes", "run", "quickstart", "--scale", "papr"], "--scale: 'papr'\n  allowed: paper, toy"),
        (["recipes", "run", "quickstart", "--jobs", "0"], "--jobs: '0'\n  allowed: a whole number, 1 or more"),
        (["recipes", "run", "quickstart", "--timeout", "abc"], "--timeout: 'abc'\n  allowed: a number, more than 0"),
        (["recipes", "compare", "x", "--reward", "nan"], "--reward: 'nan'\n  allowed: a number"),
        (["recipes", "data", "sanity", "--keep", "a", "1"], "--keep: 'a'\n  allowed: a number"),
        (["recipes", "data", "sanity", "--seed", "1.5"], "--seed: '1.5'\n  allowed: a whole number"),
        (["recipes", "data", "sanity", "--vllm", "abc"], "--vllm: 'abc'\n  allowed: KEY=VALUE"),
        (["recipes", "data", "sanity", "--vllm", "a=["], "--vllm: 'a=['\n  allowed: KEY=VALUE"),
    ],
)
def test_each_bad_argument_is_one_error_with_a_next_step(arguments, named, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("fp16_patch: ")
    assert named in said
    assert "next step: correct it; " in said


def test_a_setting_without_a_value_is_named_as_one(capsys):
    assert main(["run", "fp16_patch.rollout_dtype", "--", "python", "-m", "verl.trainer.main_ppo"]) == 2
    assert "next step: write fp16_patch.rollout_dtype=<value>" in capsys.readouterr().err


HELPED = ["", "doctor", "run", "patches", "recipes", "recipes data sanity", "recipes data convert"]
HELPED += [f"recipes {command}" for command in ("list", "show", "check", "run", "compare", "data")]


@pytest.mark.parametrize("command", HELPED)
def test_every_command_prints_its_help(command, capsys):
    """argparse formats a help text with %, so a plain % in it fails."""
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert not stopped.value.code
    assert "usage: fp16-patch" in capsys.readouterr().out


def test_generated_documents_are_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/generate_docs.py", "--check"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("order", [["a.b=1", "--out", "x"], ["--out", "x", "a.b=1"]])
def test_overrides_may_stand_before_or_after_options(order, monkeypatch):
    seen = {}
    monkeypatch.setattr("fp16_patch.lab.cli.recipes._run", lambda options: seen.update(vars(options)) or 0)
    assert main(["recipes", "run", "quickstart", *order]) == 0
    assert seen["overrides"] == ["a.b=1"]
    assert seen["out"] == Path("x")


@pytest.mark.parametrize(
    ("command", "scanned"),
    [
        (["doctor"], ["fp16_patch.platforms"]),
        (["patches"], ["fp16_patch.patches"]),
        (["recipes", "list"], ["fp16_patch.commands"]),
    ],
)
def test_a_core_command_scans_no_entry_points(command, scanned, monkeypatch, capsys):
    find, groups = importlib.metadata.entry_points, []
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda **asked: groups.append(asked["group"]) or find(**asked)
    )
    assert main(command) == 0
    assert groups == scanned


def test_a_core_command_does_not_import_the_lab_s_commands():
    code = (
        "import sys\nfrom fp16_patch.cli import main\nmain(['doctor', '--json'])\n"
        "print([name for name in sys.modules if name.startswith('fp16_patch.lab.cli')])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=100).stdout
    assert out.splitlines()[-1] == "[]"


def test_doctor_misses_flash_attention_where_openrlhf_needs_it(monkeypatch, capsys):
    monkeypatch.delenv("FP16_PATCH_PLATFORM")
    assert main(["doctor"]) == 1
    assert "NOT READY: flash-attn is not installed, and OpenRLHF imports it" in capsys.readouterr().out


def test_doctor_is_not_ready_on_a_platform_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setenv("FP16_PATCH_PLATFORM", "tpu")
    assert main(["doctor"]) == 1
    assert "NOT READY: FP16_PATCH_PLATFORM='tpu'" in capsys.readouterr().out


def test_doctor_is_not_ready_with_a_flag_that_nobody_wrote(monkeypatch, capsys):
    monkeypatch.setenv("FP16_PATCH", "garbage")
    assert main(["doctor"]) == 1
    assert "NOT READY: the environment variable FP16_PATCH='garbage'" in capsys.readouterr().out


def test_an_option_of_the_trainer_before_the_dashes(capsys):
    command = ["run", "--ds.param_dtype", "fp16", "--", sys.executable, "-m", "openrlhf.cli.train_ppo_ray"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "fp16_patch: '--ds.param_dtype' comes before the --" in said
    assert "next step:" in said


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "soon"])
def test_a_limit_must_be_a_positive_number(minutes, capsys):
    assert main(["recipes", "run", "quickstart", "--timeout", minutes]) == 2
    assert f"--timeout: '{minutes}'" in capsys.readouterr().err


def test_names_and_all_at_once_are_refused(capsys):
    assert main(["recipes", "check", "quickstart", "--all"]) == 2
    assert "both names and --all" in capsys.readouterr().err


def test_check_exits_2_where_a_file_is_not_a_recipe_and_checks_the_others(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("name: [")
    assert main(["recipes", "check", str(tmp_path / "bad.yaml"), "quickstart", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [(one["recipe"], one["problem"] is None) for one in found] == [
        ("bad", False),
        ("quickstart", True),
        ("quickstart", True),
    ]


def test_a_scale_that_the_recipe_has_not(capsys):
    assert main(["recipes", "run", "quickstart", "--scale", "paper", "--print"]) == 2
    assert "quickstart has no paper scale\n  allowed: toy" in capsys.readouterr().err


def test_printed_commands_say_how_to_make_their_world(capsys):
    assert main(["recipes", "run", "sanity-grpo", "--scale", "toy", "--print"]) == 0
    said = capsys.readouterr().out
    make = f"{sys.executable} -m fp16_patch.lab.toy --world toy --out {Path('runs/sanity-grpo-toy/world').resolve()}"
    assert said.index(make) < said.index("-m verl.trainer.main_ppo")


def test_a_full_disk_is_one_error(monkeypatch, capsys):
    def full(options):
        raise OSError(errno.ENOSPC, "No space left on device", "/data/runs/a/recipe.yaml")

    monkeypatch.setattr("fp16_patch.lab.cli.recipes._run", full)
    assert main(["recipes", "run", "quickstart"]) == 2
    assert "/data/runs/a/recipe.yaml: No space left on device\n  next step:" in capsys.readouterr().err
