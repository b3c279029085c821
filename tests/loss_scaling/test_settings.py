# SPDX-License-Identifier: Apache-2.0
"""Loss scaling takes the powers of two that torch scales well with, and refuses the rest by key and value."""

from __future__ import annotations

import inspect
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.precision import Precision

KEYS = ("init_scale", "growth_factor", "backoff_factor", "growth_interval")


def power(low: int, high: int) -> st.SearchStrategy[float]:
    """Powers of two, as floats and, where they are whole, as integers too."""
    return st.integers(low, high).flatmap(
        lambda exponent: st.sampled_from([2.0**exponent, 2**exponent] if exponent >= 0 else [2.0**exponent])
    )


ACCEPTED: dict[str, st.SearchStrategy[float]] = {
    "init_scale": power(0, 31),
    "growth_factor": power(0, 30),
    "backoff_factor": power(-30, -1),
    "growth_interval": st.integers(1, 10**9),
}
SETTINGS = st.fixed_dictionaries({}, optional=ACCEPTED)

TOO_LARGE = 10**309
"""An integer that no float can hold."""

NOT_NUMBERS = st.one_of(st.booleans(), st.text(), st.none(), st.just([1.0]), st.complex_numbers())
NUMBERS = st.one_of(st.floats(), st.integers(), st.integers(TOO_LARGE, TOO_LARGE * 10))


def is_power_of_two(value: float) -> bool:
    return 0 < value < TOO_LARGE and math.frexp(value)[0] == 0.5


def allowed(key: str, value: float) -> bool:
    """What each setting says of itself, written again and in other words."""
    if key == "growth_interval":
        return 1 <= value < TOO_LARGE and float(value).is_integer()
    low, high = {"init_scale": (1, 2**31), "growth_factor": (1, TOO_LARGE), "backoff_factor": (0, 0.5)}[key]
    return is_power_of_two(value) and low <= value <= high


def refusal(key: str, value: object) -> Fp16PatchError:
    with pytest.raises(Fp16PatchError) as caught:
        LossScaling.from_mapping({key: value})
    return caught.value


@given(SETTINGS)
def test_powers_of_two_are_accepted_and_kept(settings: dict[str, float]) -> None:
    assert LossScaling.from_mapping(settings).as_dict() == LossScaling().as_dict() | settings


@given(st.sampled_from(KEYS), NUMBERS)
def test_a_number_is_accepted_exactly_when_it_is_allowed(key: str, value: float) -> None:
    if allowed(key, value):
        kept = int(value) if key == "growth_interval" else float(value)
        assert getattr(LossScaling.from_mapping({key: value}), key) == kept
    else:
        error = refusal(key, value)
        assert f"fp16_patch.loss_scaling.{key}={value!r}" in error.what
        assert error.allowed
        assert key in (error.next_step or "")


@given(st.sampled_from(KEYS), NOT_NUMBERS)
def test_what_is_not_a_number_is_refused(key: str, value: object) -> None:
    assert f"fp16_patch.loss_scaling.{key}={value!r}" in refusal(key, value).what


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0, -1, 1.5, 3, True, "2"])
def test_usual_mistakes_are_refused(key: str, value: object) -> None:
    if (key, value) == ("growth_interval", 3):
        return
    assert f"fp16_patch.loss_scaling.{key}={value!r}" in refusal(key, value).what


@given(st.text().filter(lambda key: key not in KEYS))
def test_an_unknown_key_is_refused_by_name(key: str) -> None:
    error = refusal(key, 2.0)
    assert error.what == f"unknown loss scaling setting fp16_patch.loss_scaling.{key}=2.0"
    assert error.allowed == ", ".join(KEYS)


@pytest.mark.parametrize("settings", [65536, False, "init_scale", ["init_scale"]])
def test_one_value_instead_of_the_group_is_refused(settings: object) -> None:
    with pytest.raises(Fp16PatchError) as caught:
        LossScaling.from_mapping(settings)  # type: ignore[arg-type]
    assert caught.value.what == f"fp16_patch.loss_scaling={settings!r} is not a group of settings"


@given(SETTINGS)
def test_the_environment_carries_every_bit(settings: dict[str, float]) -> None:
    precision = Precision(loss_scaling=LossScaling.from_mapping(settings))
    assert Precision.from_mapping(json.loads(precision.to_environment())) == precision


def test_the_keys_are_torch_s_and_the_defaults_the_paper_s() -> None:
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    torch_s = inspect.signature(ShardedGradScaler).parameters
    assert LossScaling().as_dict() == {key: torch_s[key].default for key in KEYS} | {"growth_interval": 400}
