# SPDX-License-Identifier: Apache-2.0
"""Only mains whose trainer the proof reaches are accepted; the others are refused by name before launch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
from raising import raises_code

from fp16_patch.frameworks.verl import proof_gate
from fp16_patch.frameworks.verl.entry import PrecisionCallback
from fp16_patch.frameworks.verl.refusals import mains

ROOT = Path(__file__).parents[3]
REFUSED = "application-not-supported"
FROM = "from verl.trainer.main_ppo import"
DECORATED = "import hydra\n@hydra.main(config_path=None)\n"
ACCEPTED_MAINS = {
    "imported at the top": f"{FROM} TaskRunnerV1, run_ppo\ndef main(config):\n    run_ppo(config, TaskRunnerV1)",
    "decorated": f"{FROM} TaskRunnerV1, run_ppo\n{DECORATED}def main(config):\n    run_ppo(config, TaskRunnerV1)",
    "under other names": f"{FROM} TaskRunnerV1 as R, run_ppo as go\ndef main(config):\n    go(config, R)",
    "imported in the function": f"def main(c):\n    {FROM} TaskRunnerV1, run_ppo\n    run_ppo(c, TaskRunnerV1)",
    "through the module": "import verl.trainer.main_ppo as m\ndef main(config):\n    m.run_ppo(config, m.TaskRunnerV1)",
    "with the legacy trainer": (
        f"{FROM} run_ppo\nfrom verl.trainer.main_ppo_v0 import TaskRunner\ndef main(c):\n    run_ppo(c, TaskRunner)"
    ),
    "in a nested function": f"{FROM} TaskRunnerV1, run_ppo\ndef main(c):\n  def f():\n    run_ppo(c, TaskRunnerV1)",
}
REFUSED_MAINS = {
    "a task runner of its own": f"{FROM} run_ppo\nclass Mine: ...\ndef main(config):\n    run_ppo(config, Mine)",
    "a run_ppo of its own": f"{FROM} TaskRunnerV1\ndef run_ppo(*a): ...\ndef main(c):\n    run_ppo(c, TaskRunnerV1)",
    "a trainer of its own": "class RayDAPOTrainer: ...\ndef main(config):\n    RayDAPOTrainer(config).fit()",
    "a generator": "import ray\ndef main(config):\n    ray.init()",
    "a callable object": "class Main:\n    def __call__(self, config): ...\nmain = Main()\nmain.__module__ = __name__",
}


def installed_mains() -> set[str]:
    """Return every module of the installed verl that has a main of Hydra's."""
    (folder,) = importlib.util.find_spec("verl").submodule_search_locations
    root = Path(folder).parent
    with_main = [file for file in Path(folder).rglob("*.py") if "@hydra.main(" in file.read_text()]
    return {".".join(file.relative_to(root).with_suffix("").parts) for file in with_main}


def main_of(module: str):
    def main(config): ...

    main.__module__ = module
    return main


def test_every_main_of_the_installed_verl_is_in_the_table():
    found = installed_mains()
    assert "verl.trainer.main_ppo" in found
    assert found == {*mains.SUPPORTED, *mains.REFUSED}, "decide whether the proof reaches its trainer"


@pytest.mark.parametrize("name", sorted(installed_mains()))
def test_verls_mains(name):
    if name in mains.SUPPORTED:
        mains.refuse_main(importlib.import_module(name).main)
    else:
        with raises_code(REFUSED, name, mains.REFUSED[name]):
            mains.refuse_main(main_of(name))


def test_a_main_of_verl_that_no_table_has():
    with raises_code(REFUSED, "verl.experimental.next.main_ppo"):
        mains.refuse_main(main_of("verl.experimental.next.main_ppo"))


@pytest.fixture
def users_main(tmp_path, monkeypatch):
    def load(text: str):
        (tmp_path / "users_main.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "users_main", raising=False)
        importlib.invalidate_caches()
        return importlib.import_module("users_main").main

    return load


@pytest.mark.parametrize("text", ACCEPTED_MAINS.values(), ids=ACCEPTED_MAINS)
def test_a_main_that_calls_verls_launcher_with_verls_task_runner(users_main, text):
    mains.refuse_main(users_main(text))


@pytest.mark.parametrize("text", REFUSED_MAINS.values(), ids=REFUSED_MAINS)
def test_a_main_that_runs_something_else(users_main, text):
    with raises_code(REFUSED, "users_main", "run_ppo"):
        mains.refuse_main(users_main(text))


@pytest.mark.parametrize("name", ["verl.trainer.main_ppo", "verl.trainer.main_eval"])
@pytest.mark.parametrize("by_file", [True, False], ids=["python FILE", "python -m"])
def test_the_module_that_python_was_started_with(monkeypatch, name, by_file):
    spec = importlib.util.find_spec(name)
    started = sys.modules["__main__"]
    monkeypatch.setattr(started, "__spec__", None if by_file else spec, raising=False)
    monkeypatch.setattr(started, "__file__", spec.origin, raising=False)
    if name in mains.SUPPORTED:
        mains.refuse_started_module()
        mains.refuse_main(main_of("__main__"))
    else:
        for refuse in (mains.refuse_started_module, lambda: mains.refuse_main(main_of("__main__"))):
            with raises_code(REFUSED, name):
                refuse()


def test_hydra_cannot_swallow_the_refusal(compose, capsys):
    from hydra._internal.callbacks import Callbacks

    config, main = compose("+precision@_global_=fp16"), main_of("verl.trainer.main_generation_server")
    with pytest.raises(SystemExit) as stopped:
        Callbacks(config).on_job_start(config=config, task_function=main)
    assert stopped.value.code == 2
    assert "main_generation_server" in capsys.readouterr().err


def test_a_main_that_cannot_be_judged_does_not_start(capsys):
    with pytest.raises(SystemExit):
        PrecisionCallback().on_job_start({}, task_function=None)
    assert "the main could not be checked" in capsys.readouterr().err


def test_a_rank_whose_controller_never_asked_it_does_not_train(monkeypatch):
    import ray

    monkeypatch.setattr(proof_gate, "_asked", False)
    proof_gate.refuse_unproven_training()  # no Ray, no controller: an engine on its own
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with raises_code("trainer-not-supported"):
        proof_gate.refuse_unproven_training()
    proof_gate.open_gate()
    proof_gate.refuse_unproven_training()


def test_the_docs_name_every_main_and_say_whether_it_is_accepted():
    rows = [
        line for line in (ROOT / "docs" / "your-command.md").read_text().splitlines() if line.startswith("| `verl.")
    ]
    for name in (*mains.SUPPORTED, *mains.REFUSED):
        (row,) = [row for row in rows if f"`{name}`" in row]
        assert row.split("|")[2].strip() == ("accepted" if name in mains.SUPPORTED else "refused")
