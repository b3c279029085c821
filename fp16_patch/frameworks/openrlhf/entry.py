# SPDX-License-Identifier: Apache-2.0
"""The driver: check what is installed, arm this process and Ray's workers, then run OpenRLHF's own module.

OpenRLHF parses its arguments in its main block, so the flag is read where they first appear whole:
``openrlhf.utils.config.hierarchize``. Nothing has been started by then.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fp16_patch import envs
from fp16_patch.engines.ray import runtime_env
from fp16_patch.errors import Fp16PatchError, several
from fp16_patch.frameworks.installation import unfit
from fp16_patch.frameworks.openrlhf import config, plan, refusals, releases
from fp16_patch.log import logger
from fp16_patch.patching import Patch, apply, when_imported

MODULE = "openrlhf.cli.train_ppo_ray"
SETUP = "fp16_patch.frameworks.openrlhf.worker.activate"

CARRIED = (
    envs.PRECISION,
    envs.REPORTS,
    envs.RUN_RECORD,
    envs.PLATFORM,
    envs.METRICS,
)


def main(arguments: Sequence[str]) -> None:
    """Run ``MODULE`` of ``[KEY=VALUE ...] -- MODULE [ARGUMENT ...]``; exit with 2 when it cannot be done honestly."""
    split = list(arguments).index("--")
    overrides, (module, *rest) = arguments[:split], arguments[split + 1 :]
    try:
        settings = config.settings(overrides)
        if problems := unfit_installation(module):
            raise several(problems)
    except Fp16PatchError as error:
        _stop(error)
    when_imported("openrlhf.utils.config", lambda _: apply([_accepting(settings)]))
    plan.arm()
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def unfit_installation(module: str) -> list[Fp16PatchError]:
    """Everything about the command and the installed packages that the flag cannot work with. Imports none of them."""
    if module != MODULE:
        return [
            Fp16PatchError(
                f"python -m {module} is not a command this package runs in another precision",
                code="command-not-supported",
                allowed=f"python -m {MODULE}",
                next_step="start it without fp16-patch",
            )
        ]
    patches = (*plan.ALL_PATCHES, _accepting({}))
    return flash_attention_missing() + unfit("OpenRLHF", releases.DISTRIBUTION, releases.RELEASES, patches)


def flash_attention_missing() -> list[Fp16PatchError]:
    """OpenRLHF's models import it whether it is used or not; the CPU platform stands in for it."""
    if importlib.util.find_spec("flash_attn") is not None or os.environ.get(envs.PLATFORM):
        return []
    return [
        Fp16PatchError(
            "flash-attn is not installed, and OpenRLHF imports it",
            code="not-installed",
            allowed="flash-attn in the driver's and the workers' environment",
            next_step=f"install it; without a GPU set {envs.PLATFORM}=cpu (docs/cpu-platform.md)",
        )
    ]


def accept(args: Any, settings: dict[str, Any]) -> None:
    """Take the flag from OpenRLHF's parsed arguments: refuse, or rewrite them and tell every process to come.

    Raises :class:`Fp16PatchError` with every problem found and nothing changed.
    """
    precision = config.precision(args, settings)
    if problems := refusals.unsupported(args, precision):
        raise several(problems)
    changes = config.rewrite(args, precision)
    report = os.path.abspath(settings.get("report_path") or os.path.join(args.ckpt.path, "precision_report.json"))
    record = {
        "driver": {"host": platform.node(), "pid": os.getpid()},
        "changes": changes,
        "report_path": report,
    }
    os.environ |= {
        envs.PRECISION: precision.to_environment(),
        envs.REPORTS: os.path.dirname(report),
        envs.RUN_RECORD: json.dumps(record),
    }
    runtime_env.carry(SETUP, CARRIED)
    lines = [f"\n  {change['key']}: {change['before']} -> {change['after']}" for change in changes]
    logger.info("precision %s, %d settings changed%s", precision.name, len(changes), "".join(lines))


def _accepting(settings: dict[str, Any]) -> Patch:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def hierarchize(args: Any) -> Any:
            nested = original(args)
            try:
                accept(nested, settings)
            except Fp16PatchError as error:
                _stop(error)
            return nested

        return hierarchize

    return Patch(
        name="openrlhf-follow-arguments",
        target="openrlhf.utils.config:hierarchize",
        kind="wrap",
        make=make,
        parameters=("args",),
        distribution=releases.DISTRIBUTION,
        versions=releases.RELEASES,
        process="driver",
        reason="the first place where all arguments are there and nothing has been started: the flag follows "
        "--ds.param_dtype, and what cannot be honoured is refused",
        upstream="none: our own entry",
        remove_when="OpenRLHF's parser can be imported",
    )


def _stop(error: Fp16PatchError) -> NoReturn:
    sys.stdout.flush()
    print(f"\n{error}", file=sys.stderr, flush=True)
    raise SystemExit(2)
