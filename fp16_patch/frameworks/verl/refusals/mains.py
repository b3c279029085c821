# SPDX-License-Identifier: Apache-2.0
"""Refuse the mains whose trainer the proof does not reach: no process check and no precision report would run there.

Every main of verl shares a configuration, so no setting tells them apart. Hydra hands over the function that it is
about to call. A user's own main is judged by what that function refers to: verl's own launcher with a supported task
runner. What such a main really runs is checked once more in the trainer ranks (``proof_gate.py``).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from fp16_patch.errors import Fp16PatchError

LAUNCHER = "verl.trainer.main_ppo"

SUPPORTED = (LAUNCHER,)
"""Modules whose ``main`` runs a trainer that the proof reaches."""

# verl's asynchronous mains send weights over NCCL from one group of GPUs to another: no CPU run can show a proof.
_NOT_RL = "it trains no policy with a rollout"
REFUSED = {
    "verl.experimental.fully_async_policy.fully_async_main": (
        "its trainer and its rollouter are two actors with loops of their own, where no process is checked"
    ),
    "verl.experimental.one_step_off_policy.main_ppo": (
        "its trainer has a loop and a worker setup of its own, where no process is checked"
    ),
    "verl.trainer.main_generation_server": (
        "it trains nothing, and its vLLM servers start with a runtime environment that drops the flag"
    ),
    "verl.trainer.main_eval": _NOT_RL,
    "verl.trainer.sft_trainer": _NOT_RL,
    "verl.trainer.sft_trainer_ray": _NOT_RL,
}
"""verl's other mains, and why they are refused."""

TASK_RUNNERS = {LAUNCHER: ("TaskRunnerV1",), "verl.trainer.main_ppo_v0": ("TaskRunner",)}
"""Module -> the task runners whose trainer the proof reaches; a user's main passes one to verl's ``run_ppo``."""

_OWN_MAIN = (
    f"nothing shows that its trainer is one of verl's: it does not call run_ppo of {LAUNCHER} with "
    f"{' or '.join(name for names in TASK_RUNNERS.values() for name in names)}"
)
_UNKNOWN = "this release of fp16_patch does not know it, so no process would be checked"


def refuse_started_module() -> None:
    """Refuse the module that Python was started with, if it is one of verl's mains that are not supported.

    Raises:
        Fp16PatchError: It is one of :data:`REFUSED`.
    """
    started = _real_name("__main__")
    if started in REFUSED:
        raise _refusal(started, REFUSED[started])


def problems(main: str) -> list[Fp16PatchError]:
    """Return why one of verl's mains is refused; nothing for a user's own, which only its function can tell."""
    if main in SUPPORTED or main.partition(".")[0] != "verl":
        return []
    return [_refusal(main, REFUSED.get(main, _UNKNOWN))]


def refuse_main(function: Callable[..., Any]) -> None:
    """Refuse the function that Hydra is about to call, unless the proof reaches the trainer that it runs.

    Raises:
        Fp16PatchError: The proof does not reach its trainer, or nothing shows that it does.
    """
    main = _real_name(function.__module__)
    if main in SUPPORTED:
        return
    if why := REFUSED.get(main):
        raise _refusal(main, why)
    if main.partition(".")[0] == "verl":
        raise _refusal(main, _UNKNOWN)
    if not _calls_the_launcher(function):
        raise _refusal(main, _OWN_MAIN)


def _refusal(main: str, why: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"the precision flag was given to {main}: {why}",
        code="application-not-supported",
        allowed=" or ".join(f"python -m {name}" for name in SUPPORTED)
        + f", or a main of your own that calls run_ppo of {LAUNCHER}",
        next_step=f"start your run with python -m {LAUNCHER}, or remove +precision@_global_ from this command",
    )


def _real_name(module: str) -> str:
    """Return the name of a module, also of the one that Python was started with, by name or by its file."""
    if module != "__main__":
        return module
    started = sys.modules["__main__"]
    if (spec := getattr(started, "__spec__", None)) is not None:
        return str(spec.name)
    file = Path(getattr(started, "__file__", None) or "an interactive session").resolve()
    verl = importlib.util.find_spec("verl")
    for folder in (verl.submodule_search_locations or ()) if verl is not None else ():
        root = Path(folder).resolve().parent
        if file.is_relative_to(root):
            return ".".join(file.relative_to(root).with_suffix("").parts)
    return str(file)


def _calls_the_launcher(function: Callable[..., Any]) -> bool:
    """Return whether ``function`` refers to verl's own ``run_ppo`` and to a supported task runner."""
    inner: Any = function
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    if not isinstance(inner, FunctionType):
        return False
    names = set(_names(inner.__code__))
    values = [inner.__globals__[name] for name in names if name in inner.__globals__]
    runners = [(module, name) for module, of_module in TASK_RUNNERS.items() for name in of_module]
    return _refers_to(LAUNCHER, "run_ppo", names, values) and any(
        _refers_to(module, runner, names, values) for module, runner in runners
    )


def _refers_to(module: str, name: str, names: set[str], values: list[Any]) -> bool:
    """Return whether a function that uses these names and globals refers to ``name`` of ``module``."""
    loaded = sys.modules.get(module)
    if any(value is getattr(loaded, name, None) is not None for value in values):
        return True
    # Imported inside the function, or reached through the module.
    of_module = module in names or any(isinstance(value, ModuleType) and value is loaded for value in values)
    return name in names and of_module


def _names(code: CodeType) -> Iterator[str]:
    """Yield every global, attribute and module that ``code`` names, nested functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
