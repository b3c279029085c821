# SPDX-License-Identifier: Apache-2.0
"""What a misspelt setting is told: a setting that can be set, and the names that are allowed there."""

from __future__ import annotations

import math

import pytest
from raising import raises_code

from fp16_patch.precision import LossScaling, Precision
from fp16_patch.precision.setting_names import LEAVES, PREFIX, check_settings

SCALING = f"{PREFIX}loss_scaling."
WHOLE = "allowed: a whole number, 1 or more"
SHARE = "allowed: a share above 0 and at most 1"


@pytest.mark.parametrize(
    ("word", "suggested"),
    [
        (f"{SCALING}foo=1", None),
        (f"{PREFIX}loss_scalin=1", None),
        (f"{SCALING}init_scal=1", f"{SCALING}init_scale"),
        (f"{PREFIX}init_scale=1", f"{SCALING}init_scale"),
        (f"{SCALING}overwrit=1", "fp16_patch.overwrite"),
        (f"{PREFIX}reportpath=x", "fp16_patch.report_path"),
    ],
)
def test_only_a_setting_that_takes_a_value_is_suggested(word: str, suggested: str | None) -> None:
    with raises_code("unknown-setting", word) as refused:
        check_settings([word])
    step, allowed = str(refused.value.next_step), str(refused.value.allowed).split(", ")
    assert step == (f"did you mean {suggested}?" if suggested else "correct the spelling, or remove it")
    below = [leaf for leaf in LEAVES if leaf.startswith(SCALING)]
    assert allowed == (below if word.startswith(SCALING) else list(LEAVES))


@pytest.mark.parametrize(
    ("name", "value", "typed", "allowed"),
    [
        ("max_skip_rate", None, "null", SHARE),
        ("max_skip_rate", True, "true", SHARE),
        ("max_skip_rate", math.nan, "nan", SHARE),
        ("skip_rate_window", None, "null", WHOLE),
        ("skip_rate_window", math.inf, "inf", WHOLE),
        ("skip_rate_window", "200", "'200'", WHOLE),
        ("init_scale", False, "false", "allowed: a positive power of two"),
    ],
)
def test_a_value_of_the_wrong_kind_gets_the_rule_of_its_setting(
    name: str, value: object, typed: str, allowed: str
) -> None:
    with raises_code("value-not-allowed", f"{SCALING}{name}={typed} ", allowed):
        LossScaling.from_mapping({name: value})


def test_a_value_is_shown_as_it_was_typed() -> None:
    with raises_code("value-not-allowed", "fp16_patch.overwrite=null "):
        Precision(overwrite=None)  # type: ignore[arg-type]
