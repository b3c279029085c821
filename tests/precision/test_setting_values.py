# SPDX-License-Identifier: Apache-2.0
"""A setting means what Hydra reads on every framework, and has one value."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize
from omegaconf import OmegaConf
from raising import raises_code

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.openrlhf import config
from fp16_patch.precision.setting_values import check_repeated, read_settings

SCALE = "fp16_patch.loss_scaling.init_scale"
STEP = "fp16_patch.trace_rollout"


def read_by_hydra(word: str) -> Any:
    with initialize(config_path=None, version_base=None):
        node = compose(overrides=[f"+{word}"])
    return OmegaConf.to_container(node, resolve=True)["fp16_patch"]  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    "value",
    ["010", "0x3", "1_0", "yes", "on", "true", "null", "3", "1e3", "'3'", "", "12:30:45", "[a,'*.b']", "{a:1}"],
)
def test_a_value_means_what_hydra_reads(value: str) -> None:
    assert read_settings([f"{STEP}={value}"]) == read_by_hydra(f"{STEP}={value}")


@pytest.mark.parametrize("word", [f"{STEP}=010", f"{STEP}=0x3", "fp16_patch.allow_truncated_sampling=yes"])
def test_what_verl_refuses_openrlhf_refuses(word: str) -> None:
    with raises_code("value-not-allowed", word.replace("=", "='")):
        config.settings([word])


def test_a_group_of_settings_is_read_as_on_verl() -> None:
    given = config.settings(["fp16_patch.loss_scaling={init_scale:1024,hysteresis:2}"])
    assert given == {"loss_scaling": {"init_scale": 1024, "hysteresis": 2}}


@pytest.mark.parametrize("value", ["[1", "~", "1,2", "range(1,3)", "a'b", "${nowhere}", "${oc.env:NOT_SET_ANYWHERE}"])
def test_a_value_that_cannot_be_read_is_one_error(value: str) -> None:
    with raises_code("setting-unreadable", STEP):
        config.settings([f"{STEP}={value}"])


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([f"{SCALE}=4", f"{SCALE}=8"], []),
        ([f"{SCALE}=4"], [f"{SCALE}=8"]),
        ([f"{SCALE}=4"], [f"++{SCALE}=8"]),
        (["fp16_patch.loss_scaling={init_scale:4}", f"{SCALE}=8"], []),
    ],
)
def test_a_setting_with_two_values_is_refused_with_both(words: list[str], command: list[str]) -> None:
    with raises_code("setting-repeated", *words, *command):
        check_repeated(words, command)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([f"{SCALE}=4", f"{SCALE}=4.0"], [f"{SCALE}=4"]),
        ([f"{STEP}=nan", f"{STEP}=nan"], []),
        ([f"{STEP}=3"], ["trainer.nnodes=1", f"{SCALE}=4", f"{SCALE}=8"]),
        ([f"{STEP}=3"], [f"{STEP}=[", "-m", "++", "fp16_patch."]),
    ],
)
def test_equal_values_stand_and_so_do_hydras_own(words: list[str], command: list[str]) -> None:
    check_repeated(words, command)


def test_every_repeated_setting_is_named() -> None:
    with pytest.raises(Fp16PatchError) as refused:
        check_repeated([f"{SCALE}=4", f"{SCALE}=8", f"{STEP}=1", f"{STEP}=2"])
    assert refused.value.codes == ("setting-repeated", "setting-repeated")
