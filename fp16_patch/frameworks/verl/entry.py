# SPDX-License-Identifier: Apache-2.0
"""The flag's entry: a Hydra callback that rewrites verl's configuration before ``main(config)`` sees it."""

from __future__ import annotations

import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from fp16_patch import envs
from fp16_patch.engines.ray import job
from fp16_patch.engines.ray.cluster import cluster_problems
from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.frameworks.installation import framework_problems
from fp16_patch.frameworks.verl.config import command_line, sampling, vllm_engines
from fp16_patch.frameworks.verl.config.changes import Change, plan, rewrite
from fp16_patch.frameworks.verl.config.setting import refusal, value_of
from fp16_patch.frameworks.verl.config.table import settings
from fp16_patch.frameworks.verl.plan import ALL_PATCHES
from fp16_patch.frameworks.verl.refusals import irregular, mains
from fp16_patch.frameworks.verl.releases import RELEASE
from fp16_patch.log import logger
from fp16_patch.precision import Precision, start_checks
from fp16_patch.rollout_health.sampling_settings import warning

WORKER_MODULE = "fp16_patch.frameworks.verl.worker"
EXTERNAL_MODULES = "VERL_USE_EXTERNAL_MODULES"


class PrecisionCallback(Callback):  # type: ignore[misc]  # Hydra ships no types
    """Registered by ``conf/precision/*.yaml``.

    Hydra turns an exception in a callback into a warning and runs the job anyway, in BF16. So every failure here ends
    in ``SystemExit``, which Hydra does not catch.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Apply the flag to ``config`` in place; exit with 2 if that fails."""
        try:
            mains.refuse_started_module()
            apply_flag(config)
        except Fp16PatchError as error:
            _stop(error)
        except Exception as error:
            traceback.print_exc()
            what = f"the flag could not be applied: {type(error).__name__}: {error}"
            _stop(Fp16PatchError(what, code="flag-not-applied"))

    def on_job_start(self, config: DictConfig, *, task_function: Callable[..., Any], **kwargs: Any) -> None:
        """Refuse a main whose trainer the proof does not reach; exit with 2."""
        try:
            mains.refuse_main(task_function)
        except Fp16PatchError as error:
            _stop(error)
        except Exception as error:
            traceback.print_exc()
            what = f"the main could not be checked: {type(error).__name__}: {error}"
            _stop(Fp16PatchError(what, code="flag-not-applied"))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a multirun, whose jobs are composed later and never pass through ``on_run_start``."""
        _stop(multirun_error())


def apply_flag(config: DictConfig) -> list[Change]:
    """Check everything, then rewrite ``config`` in place; log and return what changed.

    Raises :class:`Fp16PatchError` with every problem found and ``config`` untouched.
    """
    if problems := application_problems(config) or installation_problems(config):
        raise combine_errors(problems)
    precision, changes, report_path = examine(config)
    accepted = sampling.accepted_settings(config, precision)

    rewrite(config, changes)
    if not report_path:  # next to the run's checkpoints
        folder = str(value_of(config, "trainer.default_local_dir") or ".")
        report_path = os.path.abspath(os.path.join(folder, "precision_report.json"))
    job.warn_if_deleted(report_path)
    _send_to_every_process(config, precision, report_path)
    with open_dict(config):
        config.fp16_patch = {
            **precision.as_mapping(),
            "report_path": report_path,
            "driver": {"host": platform.node(), "pid": os.getpid()},
            "changes": [asdict(change) for change in changes],
            "sampling": accepted,
        }
    lines = [f"\n  {change.line}" for change in changes]
    logger.info("precision %s, %d settings changed%s", precision.name, len(changes), "".join(lines))
    for text in warnings(config, precision):
        logger.warning("%s", text)
    return changes


def examine(config: DictConfig) -> tuple[Precision, list[Change], str | None]:
    """Return the precision, what it changes in verl's configuration, and the report's path. Changes nothing.

    Raises :class:`Fp16PatchError` with every problem of the configuration.
    """
    precision, changes, problems, report_path = compare(config)
    if problems:
        raise combine_errors(problems)
    return precision, changes, report_path


def compare(config: DictConfig) -> tuple[Precision, list[Change], list[Fp16PatchError], str | None]:
    """Return the precision, its changes, what it refuses, and the report's path. Changes nothing.

    Raises :class:`Fp16PatchError` if a setting of the flag is not allowed.
    """
    node = OmegaConf.to_container(config.get("fp16_patch") or OmegaConf.create({}), resolve=False)
    node.pop("applied", None)
    node = OmegaConf.to_container(OmegaConf.create(node), resolve=True)
    report_path = node.pop("report_path", None)
    _check_choice(config, node)
    precision, critic = Precision.from_mapping(node), irregular.uses_critic(config)
    changes, problems = plan(config, settings(config, precision, critic), precision)
    problems += [*irregular.problems(config, precision, critic), *_never_traced(config, precision)]
    return precision, changes, problems, report_path


def _never_traced(config: DictConfig, precision: Precision) -> Iterator[Fp16PatchError]:
    step, steps = precision.trace_rollout, value_of(config, "trainer.total_training_steps")
    if step is not None and isinstance(steps, int) and step > steps:
        why, next_step = f"the run has trainer.total_training_steps={steps}", "name a step of the run, or remove it"
        yield refusal("fp16_patch.trace_rollout", step, why, f"1 to {steps}", next_step)


def warnings(config: DictConfig, precision: Precision) -> list[str]:
    """Return what the user should know about settings and models that are accepted."""
    accepted = [warning(setting) for setting in sampling.accepted_settings(config, precision)]
    return [*precision.warnings(), *accepted, *vllm_engines.fp16_warnings(config, precision)]


def multirun_error() -> Fp16PatchError:
    """Return the error for Hydra's multirun."""
    what = "the precision flag does not reach the jobs of a Hydra multirun (-m)"
    next_step = "start each job by itself, or from a shell loop"
    return Fp16PatchError(what, code="multirun-not-supported", next_step=next_step)


def application_problems(config: DictConfig) -> list[Fp16PatchError]:
    """Return an error if the configuration is not that of a trainer that the flag supports."""
    if "actor_rollout_ref" in config:
        return []
    return [
        Fp16PatchError(
            "the precision flag was given to a Hydra application that is not verl's PPO trainer",
            code="application-not-supported",
            allowed="python -m verl.trainer.main_ppo (strategy fsdp, fsdp2 or megatron, rollout vllm)",
            next_step="remove +precision@_global_ from this command",
        )
    ]


def _check_choice(config: DictConfig, node: dict[str, Any]) -> None:
    for override in command_line.overrides(config):
        group, _, chosen = override.lstrip("+").partition("=")
        if group.partition("@")[0] == "precision" and chosen.startswith("["):
            raise Fp16PatchError(
                f"{override}: more than one precision",
                code="several-precisions",
                allowed="one of fp16, bf16, fp32",
                next_step="give one; fp16_patch.rollout_dtype sets another one for the rollout",
            )
    if "loss_scaling" in node and node["loss_scaling"] is None:
        why, allowed = (
            "FP16 training without loss scaling loses small gradients",
            "the settings of torch.amp.GradScaler",
        )
        next_step = "remove the override; max_scale=init_scale keeps the scale from growing"
        raise refusal("fp16_patch.loss_scaling", "null", why, allowed, next_step)


def installation_problems(config: DictConfig) -> list[Fp16PatchError]:
    """Return why the flag cannot work with what is installed, in this process, or with this Ray cluster."""
    import ray

    problems = [
        *framework_problems("verl", RELEASE, ALL_PATCHES),
        *start_checks.report_path_problems(value_of(config, "fp16_patch.report_path")),
        *start_checks.environment_problems(),
    ]
    if ray.is_initialized():
        what = "Ray is already initialized in this process, so the flag cannot reach its workers"
        next_step = "let verl call ray.init (RAY_ADDRESS still names a running cluster)"
        problems.append(Fp16PatchError(what, code="ray-already-started", next_step=next_step))
    else:
        problems += cluster_problems(value_of(config, "ray_kwargs.ray_init.address"))
    return problems


def _send_to_every_process(config: DictConfig, precision: Precision, report_path: str) -> None:
    """Put the flag into the run's Ray runtime environment; vLLM's child processes inherit it from there."""
    variables = "ray_kwargs.ray_init.runtime_env.env_vars"
    given = value_of(config, f"{variables}.{EXTERNAL_MODULES}") or os.environ.get(EXTERNAL_MODULES, "")
    values = {
        envs.PRECISION: precision.to_environment(),
        envs.REPORTS: os.path.dirname(os.path.abspath(report_path)),
        envs.COUNT_LOGITS: "0" if config.actor_rollout_ref.rollout.calculate_log_probs else "1",
        EXTERNAL_MODULES: WORKER_MODULE,
    }
    taken = job.take_variables(values)  # Ray refuses a variable that both the job and ray.init set
    named = f"{given},{taken.get(EXTERNAL_MODULES, '')}".split(",")
    modules = [module for module in dict.fromkeys(named) if module and module != WORKER_MODULE]
    values[EXTERNAL_MODULES] = ",".join([*modules, WORKER_MODULE])
    with open_dict(config):
        for name, value in values.items():
            OmegaConf.update(config, f"{variables}.{name}", value, force_add=True)


def _stop(error: Fp16PatchError) -> NoReturn:
    sys.stdout.flush()
    print(f"\n{error}", file=sys.stderr, flush=True)
    raise SystemExit(2)
