# SPDX-License-Identifier: Apache-2.0
"""Read the flag on OpenRLHF: its own ``--ds.param_dtype``, and our settings before the ``--`` of ``fp16-patch run``.

``ARGUMENTS`` lists what the flag sets and allows of OpenRLHF's arguments: :func:`rewrite` and ``refusals`` read it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.precision import OVERWRITE_STEP, Precision, is_dtype, long_name, short_name
from fp16_patch.precision.setting_names import check_settings
from fp16_patch.precision.setting_values import read_settings

PARAM_DTYPES = ("bf16", "fp16")
"""The values of ``--ds.param_dtype``."""


@dataclass(frozen=True)
class Argument:
    """An argument of OpenRLHF that FP16 training allows only some values of."""

    key: str
    """Its name without the dashes, as OpenRLHF nests it: ``ds.zero_stage``."""
    allowed: tuple[object, ...]
    """The first one is what the user is told to set; None and False stand for leaving the argument out."""
    why: str
    """Why the other values are refused, with the place upstream."""
    set_to: str | None = None
    """The value that the flag sets; None if it leaves the argument as it is."""

    def value(self, args: Any) -> Any:
        """Return the value in OpenRLHF's parsed arguments."""
        return attrgetter(self.key)(args)


ARGUMENTS = (
    Argument("ds.grad_accum_dtype", (None, "fp32"), "gradients would be accumulated in half precision", set_to="fp32"),
    Argument("ds.load_in_4bit", (False,), "OpenRLHF's 4-bit weights compute in BF16 only (models/actor.py:116)"),
    Argument(
        "ds.tensor_parallel_size",
        (1,),
        "DeepSpeed's tensor parallel is BF16 only here (utils/deepspeed/deepspeed.py:78), unlike ring attention",
    ),
    Argument(
        "ds.zero_stage",
        (2, 3),
        "stage 1 with FP32 accumulation does not average gradients (deepspeed runtime/zero/stage_1_and_2.py:1148); "
        "without ZeRO, DeepSpeed's FP16 optimizer has another scaler, which is not covered",
    ),
    Argument("ds.deepcompile", (False,), "compiled engines are untested"),
    Argument("ds.use_universal_ckpt", (False,), "universal checkpoints restore DeepSpeed's own scaler instead of ours"),
    Argument("actor.optim", ("adam",), "DeepSpeed orthogonalises the scaled gradients in BF16"),
    Argument("critic.optim", ("adam",), "DeepSpeed orthogonalises the scaled gradients in BF16"),
)


def settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``{"loss_scaling": {"init_scale": 1024}}`` for ``["fp16_patch.loss_scaling.init_scale=1024"]``.

    Read values as Hydra reads them on verl. Raise :class:`Fp16PatchError` on an unknown key, and on a value that no
    run can use, before anything of OpenRLHF is imported.
    """
    check_settings(overrides)
    found = read_settings(overrides)
    Precision.from_mapping({"rollout_dtype": "fp16", **_of_precision(found), "train_dtype": "fp16"})
    return found


def precision(args: Any, given: dict[str, Any]) -> Precision:
    """Return the precision of ``--ds.param_dtype`` and our settings. The default rollout dtype is the trainer's."""
    train = short_name("--ds.param_dtype", args.ds.param_dtype)
    wanted = given.get("train_dtype")
    if wanted is None or short_name("fp16_patch.train_dtype", wanted) == train:
        pass
    elif given.get("overwrite") is True and short_name("fp16_patch.train_dtype", wanted) in PARAM_DTYPES:
        train = short_name("fp16_patch.train_dtype", wanted)
    else:
        raise Fp16PatchError(
            f"fp16_patch.train_dtype={wanted} contradicts --ds.param_dtype {args.ds.param_dtype}",
            code="setting-contradicts",
            allowed="one of the two, or the same value in both",
            next_step="set --ds.param_dtype, and fp16_patch.rollout_dtype if the rollout should differ; or "
            + OVERWRITE_STEP,
        )
    return Precision.from_mapping({"rollout_dtype": train, **_of_precision(given), "train_dtype": train})


def overwrites(argument: Argument, args: Any, precision: Precision) -> bool:
    """Return whether the flag replaces the user's own dtype of ``argument``, which it would otherwise refuse."""
    value = argument.value(args)
    return precision.overwrite and is_dtype(argument.set_to) and is_dtype(value) and value not in argument.allowed


def _of_precision(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "report_path"}


def asks_for_log_probs(args: Any) -> bool:
    """Return whether OpenRLHF asks vLLM for log-probs (trainer/ppo_utils/samples_generator.py:206).

    Importance weights and mismatch metrics then read them.
    """
    return bool(args.algo.advantage.is_correction_level != "off")


def rewrite(args: Any, precision: Precision) -> list[dict[str, Any]]:
    """Change the arguments in place where possible. Return every change that the flag makes, in them and elsewhere."""
    changes = [_change("vLLM dtype", "bfloat16", long_name(precision.rollout_dtype))]
    if args.ds.param_dtype != precision.train_dtype:  # fp16_patch.train_dtype has replaced it
        changes.append(_change("--ds.param_dtype", args.ds.param_dtype, precision.train_dtype, overwritten=True))
        args.ds.param_dtype = precision.train_dtype
    if precision.train_dtype == "fp16":
        for argument in ARGUMENTS:
            if argument.set_to is not None:
                overwritten = overwrites(argument, args, precision)
                changes.append(_change(f"--{argument.key}", argument.value(args), argument.set_to, overwritten))
                *parents, name = argument.key.split(".")
                setattr(functools.reduce(getattr, parents, args), name, argument.set_to)
        block = {name: f"{value:g}" for name, value in precision.loss_scaling.as_dict().items()}
        changes += [_change(f"loss scaling: {name}", "DeepSpeed's", value) for name, value in block.items()]
    return [change for change in changes if change["before"] != change["after"]]


def line(change: Mapping[str, Any]) -> str:
    """Return a change as logs show it."""
    mark = " (overwritten)" if change["overwritten"] else ""
    return f"{change['key']}: {change['before']} -> {change['after']}{mark}"


def _change(key: str, before: Any, after: Any, overwritten: bool = False) -> dict[str, Any]:
    return {"key": key, "before": before, "after": after, "overwritten": overwritten}
