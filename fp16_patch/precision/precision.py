# SPDX-License-Identifier: Apache-2.0
"""Define the precision of the whole RL loop, and pass it between processes."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.precision.loss_scaling import LossScaling, as_typed, check_keys, refuse

DTYPES = ("train_dtype", "rollout_dtype")
ROLLOUT_OVERFLOW = ("stop", "mask")
OVERWRITE_STEP = "set fp16_patch.overwrite=true to replace it"

_LONG = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
PRECISIONS = tuple(_LONG)
_SHORT = {long: short for short, long in _LONG.items()} | {name: name for name in _LONG} | {"half": "fp16"}


def reports_folder() -> Path:
    """Return the folder of this run's reports."""
    return Path(os.environ.get(envs.REPORTS, "."))


def short_name(key: str, dtype: object) -> str:
    """Return ``"fp16"``, ``"bf16"`` or ``"fp32"`` for a spelling such as ``"torch.float16"`` or ``"half"``.

    Raises:
        Fp16PatchError: If it is another dtype; the message names ``key``.
    """
    name = str(dtype).removeprefix("torch.").lower()
    if name not in _SHORT:
        raise Fp16PatchError(
            f"{key}={as_typed(dtype)} is not a precision",
            code="not-a-precision",
            allowed=", ".join(f"{short} ({long})" for short, long in _LONG.items()),
            next_step=f"set {key} to one of them",
        )
    return _SHORT[name]


def is_dtype(value: object) -> bool:
    """Return whether ``value`` spells one of the dtypes."""
    return isinstance(value, str) and value.removeprefix("torch.").lower() in _SHORT


def long_name(short: str) -> str:
    """Return torch's and vLLM's spelling: ``"float16"`` for ``"fp16"``."""
    return _LONG[short]


@dataclass(frozen=True)
class Precision:
    """The settings under ``fp16_patch``; each field has the name of its configuration key.

    The dtypes are ``"fp16"``, ``"bf16"`` or ``"fp32"`` in any of the nine combinations of the paper's precision
    ablation; other spellings are normalized. ``loss_scaling`` is used where ``train_dtype`` is ``"fp16"``.

    Raises:
        Fp16PatchError: If a value is not allowed or contradicts another.
    """

    train_dtype: str = "fp16"
    rollout_dtype: str = "fp16"
    loss_scaling: LossScaling = field(default_factory=LossScaling)
    fp32_modules: tuple[str, ...] = ()
    """Shell-style patterns of module names that the trainer computes in FP32."""
    trace_update: int | None = None
    """The update, counted from 1, whose overflow report is written even if it does not overflow."""
    trace_rollout: int | None = None
    """The step, counted from 1, in which one answer's forward pass in vLLM is traced module by module."""
    keep_log_probs: bool = False
    """Whether to save the log-probs of both engines, token by token, next to the precision report."""
    rollout_overflow: str = "stop"
    """What follows if the rollout returns log-probs that are inf or NaN: ``"stop"`` ends the run, ``"mask"`` takes
    the answers out of the loss and out of their group's mean and deviation."""
    rollout_overflow_max_share: float = 0.1
    """Share of a step's answers above which ``"mask"`` ends the run too."""
    allow_truncated_sampling: bool = False
    """Whether vLLM may sample from another distribution than the trainer computes (top_p, top_k, penalties, ...)."""
    overwrite: bool = False
    """Whether the flag replaces the user's explicit dtypes that contradict it; otherwise they are refused."""

    def __post_init__(self) -> None:
        for key in DTYPES:
            object.__setattr__(self, key, short_name(f"fp16_patch.{key}", getattr(self, key)))
        object.__setattr__(self, "fp32_modules", _patterns(self.fp32_modules))
        for key in ("keep_log_probs", "allow_truncated_sampling", "overwrite"):
            if type(getattr(self, key)) is not bool:
                raise refuse(key, getattr(self, key), "true, false", "fp16_patch")
        if self.rollout_overflow not in ROLLOUT_OVERFLOW:
            raise refuse("rollout_overflow", self.rollout_overflow, ", ".join(ROLLOUT_OVERFLOW), "fp16_patch")
        share = self.rollout_overflow_max_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise refuse("rollout_overflow_max_share", share, "a number from 0 to below 1", "fp16_patch")
        if self.rollout_overflow == "stop" and share != type(self).rollout_overflow_max_share:
            raise Fp16PatchError(
                f"fp16_patch.rollout_overflow_max_share={share}: with rollout_overflow=stop any overflow stops the run",
                code="setting-contradicts",
                allowed="fp16_patch.rollout_overflow=mask",
                next_step="set fp16_patch.rollout_overflow=mask, or remove fp16_patch.rollout_overflow_max_share",
            )
        for key in ("trace_update", "trace_rollout"):
            number = getattr(self, key)
            if number is not None and (type(number) is not int or number < 1):
                raise refuse(key, number, "null, or a whole number counted from 1", "fp16_patch")
        if self.trace_update is not None and self.train_dtype != "fp16":
            raise Fp16PatchError(
                f"fp16_patch.trace_update={self.trace_update}: training in {self.train_dtype} has no loss scale",
                code="setting-contradicts",
                allowed="a train dtype of fp16",
                next_step="remove fp16_patch.trace_update",
            )

    @property
    def name(self) -> str:
        """Return ``"fp16"``, or ``"fp16 train, bf16 rollout"`` if the two sides differ."""
        train, rollout = self.train_dtype, self.rollout_dtype
        return train if train == rollout else f"{train} train, {rollout} rollout"

    def warnings(self) -> list[str]:
        """Return what the user should know about settings that are accepted."""
        return self.loss_scaling.warnings() if self.train_dtype == "fp16" else []

    @classmethod
    def from_mapping(cls, node: Mapping[str, Any]) -> Precision:
        """Build a Precision from a configuration node; both dtypes are required.

        Raises:
            Fp16PatchError: If a key is missing or unknown, or a value is not allowed.
        """
        check_keys(cls, node, "fp16_patch")
        for key in DTYPES:
            if node.get(key) is None:
                raise Fp16PatchError(
                    f"fp16_patch.{key} is not set",
                    code="setting-missing",
                    allowed=", ".join(_LONG),
                    next_step="use the flag's own option, +precision@_global_=fp16, and override from there",
                )
        loss_scaling = node.get("loss_scaling")
        scaling = LossScaling.from_mapping({} if loss_scaling is None else loss_scaling)
        return cls(**{**node, "loss_scaling": scaling, "fp32_modules": node.get("fp32_modules") or ()})

    def as_mapping(self) -> dict[str, Any]:
        """Return the configuration node, ready for JSON: the inverse of :meth:`from_mapping`."""
        return {**asdict(self), "fp32_modules": list(self.fp32_modules)}

    def to_environment(self) -> str:
        """Return the value of ``envs.PRECISION`` for child processes."""
        return json.dumps(self.as_mapping(), sort_keys=True)

    @classmethod
    def current(cls) -> Precision:
        """Return the Precision of this process, which was started under the flag.

        Raises:
            Fp16PatchError: If the flag is off in this process.
        """
        if (precision := cls.from_environment()) is None:
            raise Fp16PatchError(
                f"{envs.PRECISION} is not set in this process: the flag was not propagated to it",
                code="flag-not-propagated",
                allowed=f"{envs.PRECISION} in the environment of every process of the run",
                next_step="look for what replaces Ray's runtime environment or RAY_RUNTIME_ENV_HOOK (`uv run` does)",
            )
        return precision

    @classmethod
    def from_environment(cls) -> Precision | None:
        """Return the Precision this process was started with; None if the flag is off."""
        text = os.environ.get(envs.PRECISION)
        return _parse(text) if text else None


@functools.lru_cache
def _parse(text: str) -> Precision:
    """Parse the variable's text. Cached on it, so that a child process with another text never gets its parent's."""
    try:
        node = json.loads(text)
    except json.JSONDecodeError:
        node = None
    if not isinstance(node, dict):
        raise Fp16PatchError(
            f"the environment variable {envs.PRECISION}={text!r} is not JSON that the flag has written",
            code="environment-unreadable",
            allowed="the variable unset, or the JSON that the flag writes",
            next_step=f"unset {envs.PRECISION}; the flag sets it for the processes that need it",
        )
    return Precision.from_mapping(node)


def _patterns(value: object) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, list | tuple) and all(isinstance(name, str) and name for name in listed):
        return tuple(listed)
    raise Fp16PatchError(
        f"fp16_patch.fp32_modules={as_typed(value)} is not a list of module names",
        code="wrong-type",
        allowed="names or shell-style patterns, such as [lm_head,'*.mlp.gate']",
        next_step="correct it, or remove it to compute every module in the train dtype",
    )
