# SPDX-License-Identifier: Apache-2.0
"""Start in the driver: check the installation, register the patches here and in Ray's workers, then run OpenRLHF.

OpenRLHF parses its arguments in its main block and passes them to ``openrlhf.utils.config.hierarchize``. The flag is
read there. Nothing has been started by then.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import runpy
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from fp16_patch import envs, platforms
from fp16_patch.engines.ray import job, runtime_env
from fp16_patch.engines.vllm import fp16_risks
from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.frameworks.installation import framework_problems
from fp16_patch.frameworks.openrlhf import config, plan, refusals
from fp16_patch.frameworks.openrlhf.releases import RELEASE
from fp16_patch.log import logger
from fp16_patch.patching import ProcessKind, apply, when_imported, wrap
from fp16_patch.precision import Precision, start_checks
from fp16_patch.rollout_health.sampling_settings import warning

MODULE = "openrlhf.cli.train_ppo_ray"
SETUP = "fp16_patch.frameworks.openrlhf.worker.activate"

CARRIED = (envs.PRECISION, envs.REPORTS, envs.COUNT_LOGITS, envs.RUN_RECORD, envs.PLATFORM, envs.METRICS)

_settings: dict[str, Any] = {}  # from the command line of this driver


def main(arguments: Sequence[str]) -> None:
    """Run ``MODULE`` of ``[KEY=VALUE ...] -- MODULE [ARGUMENT ...]``. Exit with 2 if the flag cannot be honoured."""
    split = list(arguments).index("--")
    overrides, (module, *rest) = arguments[:split], arguments[split + 1 :]
    try:
        _settings.update(config.settings(overrides))
        report_path = start_checks.report_path_problems(_settings.get("report_path"))
        if problems := [*report_path, *installation_problems(module)]:
            raise combine_errors(problems)
        when_imported(follow_arguments.trigger, lambda _: apply([follow_arguments]))
        plan.register_import_hooks()
    except Fp16PatchError as error:
        _stop(error)
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def installation_problems(module: str) -> Iterator[Fp16PatchError]:
    """Yield why the flag cannot work with this command and the installed packages. Imports none of them."""
    if module == MODULE:
        yield from environment_problems()
        yield from runtime_env.job_problems(SETUP)
        yield from framework_problems("OpenRLHF", RELEASE, (*plan.ALL_PATCHES, follow_arguments))
    else:
        yield Fp16PatchError(
            f"python -m {module} is not supported under the flag",
            code="command-not-supported",
            allowed=f"python -m {MODULE}",
            next_step="start it without fp16-patch",
        )


def environment_problems() -> Iterator[Fp16PatchError]:
    """Yield errors for variables that cannot be used, and for a missing flash-attn, which OpenRLHF always imports.

    The CPU platform installs a stub of flash-attn.
    """
    yield from platforms.check()
    yield from start_checks.environment_problems()
    if importlib.util.find_spec("flash_attn") is None and not os.environ.get(envs.PLATFORM):
        yield Fp16PatchError(
            "flash-attn is not installed, and OpenRLHF imports it",
            code="not-installed",
            allowed="flash-attn in the driver's and the workers' environment",
            next_step=f"install it; without a GPU set {envs.PLATFORM}=cpu (docs/cpu-platform.md)",
        )


def apply_flag(args: Any, settings: dict[str, Any]) -> None:
    """Read the flag from OpenRLHF's parsed arguments, rewrite them, and set the environment of every process.

    Raise :class:`Fp16PatchError` with every problem, before anything is changed.
    """
    precision = config.precision(args, settings)
    if problems := refusals.unsupported(args, precision):
        raise combine_errors(problems)
    changes = config.rewrite(args, precision)
    report = os.path.abspath(settings.get("report_path") or os.path.join(args.ckpt.path, "precision_report.json"))
    driver = {"host": platform.node(), "pid": os.getpid()}
    accepted = refusals.accepted_sampling(args, precision)
    record = {"driver": driver, "changes": changes, "report_path": report, "sampling": accepted}
    os.environ |= {
        envs.PRECISION: precision.to_environment(),
        envs.REPORTS: os.path.dirname(report),
        envs.COUNT_LOGITS: "0" if config.asks_for_log_probs(args) else "1",
        envs.RUN_RECORD: json.dumps(record),
    }
    runtime_env.set_runtime_env_hook(SETUP, CARRIED)
    job.warn_if_deleted(report)
    lines = [f"\n  {config.line(change)}" for change in changes]
    logger.info("precision %s, %d settings changed%s", precision.name, len(changes), "".join(lines))
    for text in warnings(args, precision):
        logger.warning("%s", text)


def warnings(args: Any, precision: Precision) -> list[str]:
    """Return what the user should know about arguments and models that are accepted."""
    accepted = [warning(setting) for setting in refusals.accepted_sampling(args, precision)]
    model = str(args.actor.model_name_or_path)
    return [*precision.warnings(), *accepted, *fp16_risks.warnings("--actor.model_name_or_path", model, precision)]


@wrap(
    "openrlhf.utils.config:hierarchize",
    name="openrlhf-follow-arguments",
    release=RELEASE,
    processes={ProcessKind.DRIVER},
    reason="the first function that has all arguments, before anything is started: the flag follows --ds.param_dtype, "
    "and arguments that it cannot honour are refused",
    upstream="none: our own entry",
    remove_when="OpenRLHF's parser can be imported",
)
def follow_arguments(original: Any, args: Any) -> Any:
    """Apply the flag to OpenRLHF's arguments. Exit with 2 on a refusal."""
    nested = original(args)
    try:
        apply_flag(nested, _settings)
    except Fp16PatchError as error:
        _stop(error)
    return nested


def _stop(error: Fp16PatchError) -> NoReturn:
    sys.stdout.flush()
    print(f"\n{error}", file=sys.stderr, flush=True)
    raise SystemExit(2)
