# SPDX-License-Identifier: Apache-2.0
"""Find the settings of verl's rollout that make mu another distribution. Line numbers are those of verl 0.9.1.

Looked at is what takes effect. verl's loops fix ``repetition_penalty`` at 1.0 (``trainer/ppo/v1/agent_loop_tq.py:68``)
and do not read ``do_sample``. vLLM takes from a generation configuration only the ids of EOS, because verl gives each
request all sampling parameters. The arguments in ``engine_kwargs.vllm`` come last, so they win
(``workers/rollout/vllm_rollout/vllm_async_server.py:350``).
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config.rollout_correction import LOG_PROBS
from fp16_patch.frameworks.verl.config.setting import value_of
from fp16_patch.frameworks.verl.config.vllm_engines import ROLLOUT, VLLM_ARGUMENTS
from fp16_patch.precision import Precision
from fp16_patch.rollout_health.sampling import NEUTRAL, accept
from fp16_patch.rollout_health.sampling_settings import (
    CUT,
    CUT_SAMPLES,
    LOWEST_TEMPERATURE,
    TOO_COLD,
    SamplingSetting,
    judge,
)

MODE = f"{ROLLOUT}.logprobs_mode"
TEMPERATURE = f"{ROLLOUT}.temperature"
RAW, RIGHT = "raw_logprobs", "processed_logprobs"

PROCESSED_SAMPLES = "a logits processor changes what vLLM samples from"
PROCESSED = f"{PROCESSED_SAMPLES}, and its log-probs are those of the changed distribution"
SYNTHETIC = "vLLM accepts draft tokens at a fixed rate, whatever their probability"
NO_LOG_PROBS = "vLLM then returns logits in place of log-probs"
USE_RAW = (
    f"remove it, or set {MODE}={RAW} and {TEMPERATURE}=1: the log-probs are then those of the whole distribution, "
    "although the samples are not"
)


def log_probs_are_read(config: DictConfig) -> bool:
    """Return whether verl asks for the rollout's log-probs: mismatch metrics and importance weights then read them.

    A correction without them is refused (``rollout_correction.py``).
    """
    return bool(value_of(config, LOG_PROBS))


def problems(config: DictConfig, precision: Precision) -> list[Fp16PatchError]:
    """Return the settings that would make an importance weight or a mismatch metric wrong."""
    return judge(_find(config), precision, log_probs_are_read(config))[0]


def accepted_settings(config: DictConfig, precision: Precision) -> list[dict[str, Any]]:
    """Return the settings that change mu and are accepted, as the precision report lists them."""
    return judge(_find(config), precision, log_probs_are_read(config))[1]


def accepted_requests(config: DictConfig) -> set[tuple[str, str]]:
    """Return the parameters with which requests give right log-probs, as ``rollout_health.sampling`` names them."""
    rollout = config.actor_rollout_ref.rollout
    accepted = accept(temperature=rollout.temperature)
    if whole_distribution(config) is not None:
        accepted |= accept(top_p=rollout.top_p, top_k=rollout.top_k)
    if config.algorithm.adv_estimator == "remax":
        accepted |= accept(temperature=0)  # its baseline, which nothing is trained on
    return accepted


def _find(config: DictConfig) -> list[SamplingSetting]:
    """Return every setting that changes what vLLM samples from, and the mode of log-probs that are read."""
    found = []
    right_by = whole_distribution(config)
    for name in ("top_p", "top_k"):
        value = value_of(config, f"{ROLLOUT}.{name}")
        if value is not None and value not in NEUTRAL[name]:
            neutral = f"{name}={NEUTRAL[name][-1]:g}"
            found.append(
                SamplingSetting(f"{ROLLOUT}.{name}", value, _why(config, CUT, CUT_SAMPLES), neutral, USE_RAW, right_by)
            )
    key, value = _vllm_argument(config, "logits_processors")
    if value:
        found.append(
            SamplingSetting(key, value, _why(config, PROCESSED, PROCESSED_SAMPLES), "unset", USE_RAW, right_by)
        )
    key, value = _vllm_argument(config, "speculative_config")
    if "synthetic" in str(value):
        found.append(SamplingSetting(key, value, SYNTHETIC, "rejection_sample_method=standard", "remove it"))
    temperature = value_of(config, TEMPERATURE)
    if isinstance(temperature, int | float) and temperature < LOWEST_TEMPERATURE:
        found.append(SamplingSetting(TEMPERATURE, temperature, TOO_COLD, "0.01 or more", f"set {TEMPERATURE}=1"))
    return [*found, *(_mode(config, temperature) if log_probs_are_read(config) else ())]


def _mode(config: DictConfig, temperature: Any) -> list[SamplingSetting]:
    key, mode = _log_probs_mode(config)
    if mode == RIGHT or (mode == RAW and temperature == 1):
        return []
    why = f"vLLM's log-probs are those at temperature 1, the trainer's those at {temperature}"
    return [SamplingSetting(key, mode, why if mode == RAW else NO_LOG_PROBS, RIGHT, f"set {key}={RIGHT}")]


def _why(config: DictConfig, processed: str, samples: str) -> str:
    """Return what is wrong with samples and log-probs, in the mode of log-probs that takes effect."""
    _, mode = _log_probs_mode(config)
    if mode == RAW:
        return f"{samples}, although its log-probs are those of the whole distribution"
    return processed if mode == RIGHT else samples


def whole_distribution(config: DictConfig) -> str | None:
    """Return what makes vLLM's log-probs those of the trainer's distribution wherever samples are cut, or None."""
    key, mode = _log_probs_mode(config)
    return f"{key}={RAW} at temperature 1" if mode == RAW and value_of(config, TEMPERATURE) == 1 else None


def _log_probs_mode(config: DictConfig) -> tuple[str, str]:
    """Return the key and the value of the mode that takes effect; vLLM's own default is raw log-probs."""
    key, mode = _vllm_argument(config, "logprobs_mode")
    return (key, mode) if mode else (MODE, value_of(config, MODE) or RAW)


def _vllm_argument(config: DictConfig, name: str) -> tuple[str, Any]:
    """Return the key of one of vLLM's arguments, in either spelling, and its value. verl drops those that are null."""
    given = value_of(config, VLLM_ARGUMENTS)
    arguments = OmegaConf.to_container(given, resolve=True) if isinstance(given, DictConfig) else {}
    found = {key: value for key, value in arguments.items() if str(key).replace("-", "_") == name}
    set_ = [(f"{VLLM_ARGUMENTS}.{key}", value) for key, value in found.items() if value is not None]
    return set_[-1] if set_ else (f"{VLLM_ARGUMENTS}.{name}", None)
