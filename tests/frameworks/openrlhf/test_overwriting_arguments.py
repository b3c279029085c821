# SPDX-License-Identifier: Apache-2.0
"""``fp16_patch.overwrite=true`` on OpenRLHF: its two arguments that are dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from raising import check_error, raises_code

from fp16_patch.frameworks.openrlhf import config, refusals

Arguments = Callable[..., Any]
OVERWRITE = "fp16_patch.overwrite=true"


def test_train_dtype_replaces_a_hard_coded_param_dtype(arguments: Arguments) -> None:
    args = arguments(ds__param_dtype="bf16", ds__grad_accum_dtype="bf16")
    precision = config.precision(args, config.settings(["fp16_patch.train_dtype=fp16", OVERWRITE]))
    assert (precision.train_dtype, precision.rollout_dtype) == ("fp16", "fp16")
    assert refusals.unsupported(args, precision) == []
    changes = {change["key"]: change for change in config.rewrite(args, precision)}
    assert (args.ds.param_dtype, args.ds.grad_accum_dtype) == ("fp16", "fp32")
    for key, after in (("--ds.param_dtype", "fp16"), ("--ds.grad_accum_dtype", "fp32")):
        assert changes[key] == {"key": key, "before": "bf16", "after": after, "overwritten": True}
    assert not changes["vLLM dtype"]["overwritten"]


def test_without_it_both_errors_name_it(arguments: Arguments) -> None:
    args = arguments(ds__grad_accum_dtype="bf16")
    with raises_code("setting-contradicts", OVERWRITE):
        config.precision(args, config.settings(["fp16_patch.train_dtype=bf16"]))
    (problem,) = refusals.unsupported(args, config.precision(args, {}))
    check_error(problem, "setting-refused", "--ds.grad_accum_dtype bf16", OVERWRITE)


def test_refused_arguments_stay_refused(arguments: Arguments) -> None:
    args = arguments(ds__load_in_4bit=True, ds__grad_accum_dtype="int8")
    problems = refusals.unsupported(args, config.precision(args, config.settings([OVERWRITE])))
    assert len(problems) == 2
    assert not any("fp16_patch.overwrite" in str(problem) for problem in problems)


@pytest.mark.parametrize("value", ["2", "maybe", "null"])
def test_another_value_of_it_is_one_error(value: str) -> None:
    with raises_code("value-not-allowed", "fp16_patch.overwrite", "allowed: true, false"):
        config.settings([f"fp16_patch.overwrite={value}"])


def test_a_dtype_that_param_dtype_does_not_take_contradicts_still(arguments: Arguments) -> None:
    with raises_code("setting-contradicts", "fp16_patch.train_dtype=fp32"):
        config.precision(arguments(), config.settings(["fp16_patch.train_dtype=fp32", OVERWRITE]))
