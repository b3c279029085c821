# SPDX-License-Identifier: Apache-2.0
"""What the flag means: one Precision for the whole RL loop, and how it travels between processes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.precision.loss_scaling import LossScaling

KEYS = ("train_dtype", "rollout_dtype", "loss_scaling", "fp32_modules", "trace_update", "keep_log_probs")
"""A Precision as a configuration node."""

_LONG = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_SHORT = {long: short for short, long in _LONG.items()} | {name: name for name in _LONG} | {"half": "fp16"}


def reports_folder() -> Path:
    """Where this run's reports go."""
    return Path(os.environ.get(envs.REPORTS, "."))


def short_name(key: str, dtype: object) -> str:
    """``"float16"``, ``"half"`` or ``"fp16"`` -> ``"fp16"``; anything else is refused, naming ``key``."""
    name = str(dtype).removeprefix("torch.").lower()
    if name not in _SHORT:
        raise Fp16PatchError(
            f"{key}={dtype!r} is not a precision",
            code="not-a-precision",
            allowed=", ".join(f"{short} ({long})" for short, long in _LONG.items()),
            next_step=f"set {key} to one of them",
        )
    return _SHORT[name]


def long_name(short: str) -> str:
    """``"fp16"`` -> ``"float16"``, torch's and vLLM's spelling."""
    return _LONG[short]


@dataclass(frozen=True)
class Precision:
    """The train dtype, the rollout dtype and how the loss is scaled.

    ``train`` and ``rollout`` are ``"fp16"``, ``"bf16"`` or ``"fp32"``: nine combinations, those of the
    paper's precision ablation. ``loss_scaling`` matters where ``train`` is ``"fp16"``.
    """

    train: str = "fp16"
    rollout: str = "fp16"
    loss_scaling: LossScaling = field(default_factory=LossScaling)
    fp32_modules: tuple[str, ...] = ()
    """Shell-style patterns of module names that the trainer computes in FP32."""
    trace_update: int | None = None
    """The update, counted from 1, whose overflow report is written whether it overflows or not."""
    keep_log_probs: bool = False
    """Whether the log-probs of both engines are kept, token by token, beside the precision report."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", short_name("fp16_patch.train_dtype", self.train))
        object.__setattr__(self, "rollout", short_name("fp16_patch.rollout_dtype", self.rollout))
        object.__setattr__(self, "fp32_modules", _patterns(self.fp32_modules))
        if type(self.keep_log_probs) is not bool:
            raise Fp16PatchError(
                f"fp16_patch.keep_log_probs={self.keep_log_probs!r} is neither true nor false",
                code="value-not-allowed",
                allowed="true, false",
                next_step="correct it, or remove it",
            )
        if self.trace_update is not None and (type(self.trace_update) is not int or self.trace_update < 1):
            raise Fp16PatchError(
                f"fp16_patch.trace_update={self.trace_update!r} is not an update",
                code="value-not-allowed",
                allowed="null, or a whole number counted from 1",
                next_step="set it to the update to trace, or remove it",
            )
        if self.trace_update is not None and self.train != "fp16":
            raise Fp16PatchError(
                f"fp16_patch.trace_update={self.trace_update}: training in {self.train} has no loss scale to trace",
                code="setting-contradicts",
                allowed="a train dtype of fp16",
                next_step="remove fp16_patch.trace_update",
            )

    @property
    def name(self) -> str:
        """``"fp16"``, or ``"fp16 train, bf16 rollout"`` where the two sides differ."""
        return self.train if self.train == self.rollout else f"{self.train} train, {self.rollout} rollout"

    @classmethod
    def from_mapping(cls, node: Mapping[str, Any]) -> Precision:
        """Build from the ``train_dtype``, ``rollout_dtype`` and ``loss_scaling`` of a configuration node.

        Raises :class:`Fp16PatchError` on a key that is missing or unknown.
        """
        for key in node:
            if key not in KEYS:
                raise Fp16PatchError(
                    f"unknown setting fp16_patch.{key}={node[key]!r}",
                    code="unknown-setting",
                    allowed=", ".join(KEYS),
                    next_step="correct the spelling or remove the override",
                )
        for key in KEYS[:2]:
            if node.get(key) is None:
                raise Fp16PatchError(
                    f"fp16_patch.{key} is not set",
                    code="setting-missing",
                    allowed=", ".join(_LONG),
                    next_step="use the flag's own option, +precision@_global_=fp16, and override from there",
                )
        loss_scaling = node.get("loss_scaling")
        return cls(
            train=node["train_dtype"],
            rollout=node["rollout_dtype"],
            loss_scaling=LossScaling.from_mapping({} if loss_scaling is None else loss_scaling),
            fp32_modules=node.get("fp32_modules") or (),
            trace_update=node.get("trace_update"),
            keep_log_probs=node.get("keep_log_probs", False),
        )

    def as_mapping(self) -> dict[str, Any]:
        """The inverse of :meth:`from_mapping`; JSON-able."""
        return {
            "train_dtype": self.train,
            "rollout_dtype": self.rollout,
            "loss_scaling": self.loss_scaling.as_dict(),
            "fp32_modules": list(self.fp32_modules),
            "trace_update": self.trace_update,
            "keep_log_probs": self.keep_log_probs,
        }

    def to_environment(self) -> str:
        """Return the value of ``envs.PRECISION`` for child processes."""
        return json.dumps(self.as_mapping(), sort_keys=True)

    @classmethod
    def in_force(cls) -> Precision:
        """The Precision of a process that the flag has started. Raises :class:`Fp16PatchError` in any other."""
        precision = cls.from_environment()
        if precision is None:
            raise Fp16PatchError(
                "the flag has not reached this process, which was to run under it",
                code="flag-not-propagated",
                allowed=f"{envs.PRECISION} in the environment of every process of the run",
                next_step="look for what replaces Ray's runtime environment or RAY_RUNTIME_ENV_HOOK (`uv run` does)",
            )
        return precision

    @classmethod
    def from_environment(cls) -> Precision | None:
        """The Precision this process was started with; None when the flag is off."""
        value = os.environ.get(envs.PRECISION)
        if not value:
            return None
        try:
            node = json.loads(value)
        except json.JSONDecodeError:
            node = None
        if not isinstance(node, dict):
            raise Fp16PatchError(
                f"the environment variable {envs.PRECISION}={value!r} is not what the flag writes there",
                code="environment-unreadable",
                next_step=f"unset {envs.PRECISION}; the flag sets it for the processes that need it",
            )
        return cls.from_mapping(node)


def _patterns(value: object) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, list | tuple) and all(isinstance(name, str) and name for name in listed):
        return tuple(listed)
    raise Fp16PatchError(
        f"fp16_patch.fp32_modules={value!r} is not a list of module names",
        code="wrong-type",
        allowed="names or shell-style patterns, such as [lm_head,'*.mlp.gate']",
        next_step="correct it, or remove it to compute every module in the train dtype",
    )
