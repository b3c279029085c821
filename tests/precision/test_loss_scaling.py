# SPDX-License-Identifier: Apache-2.0
"""Loss scaling takes the powers of two that torch scales well with, and refuses the rest by key and value."""

from __future__ import annotations

import inspect
import json
import math

import hypothesis
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from raising import raises_code

from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.precision import Precision
from fp16_patch.precision.loss_scaling import as_typed

UNTIMED = hypothesis.settings(deadline=None)

TORCH_S = ("init_scale", "growth_factor", "backoff_factor", "growth_interval")
SCALES = ("init_scale", "min_scale", "max_scale")
WHOLE = ("growth_interval", "hysteresis", "max_consecutive_skips", "skip_rate_window")
KEYS = (*TORCH_S, "hysteresis", "min_scale", "max_scale", "max_consecutive_skips", "max_skip_rate", "skip_rate_window")

DEFAULTS = LossScaling()


def power(low: int, high: int) -> st.SearchStrategy[float]:
    """Powers of two, as floats and, where they are whole, as integers too."""
    return st.integers(low, high).flatmap(
        lambda exponent: st.sampled_from([2.0**exponent, 2**exponent] if exponent >= 0 else [2.0**exponent])
    )


@st.composite
def settings(draw: st.DrawFn) -> dict[str, float]:
    """Any of the settings, none of them or all, with the scales in order."""
    low, start, high = sorted(draw(st.tuples(*[st.integers(-24, 31)] * 3)))
    chosen = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "init_scale": power(start, start),
                "min_scale": power(low, low),
                "max_scale": power(high, high),
                "growth_factor": power(1, 30),
                "backoff_factor": power(-30, -1),
                "growth_interval": st.integers(1, 10**9),
                "hysteresis": st.integers(1, 10**9),
                "max_consecutive_skips": st.integers(1, 10**9),
                "max_skip_rate": st.floats(0, 1, exclude_min=True),
                "skip_rate_window": st.integers(1, 10**9),
            },
        )
    )
    together = DEFAULTS.as_dict() | chosen
    assume(together["min_scale"] <= together["init_scale"] <= together["max_scale"])
    return chosen


TOO_LARGE = 10**309
"""An integer that no float can hold."""

NOT_NUMBERS = st.one_of(st.booleans(), st.text(), st.none(), st.just([1.0]), st.complex_numbers())
NUMBERS = st.one_of(st.floats(), st.integers(), power(-40, 40), st.integers(TOO_LARGE, TOO_LARGE * 10))


def is_power_of_two(value: float) -> bool:
    return 0 < value < TOO_LARGE and math.frexp(value)[0] == 0.5


def allowed(key: str, value: float) -> bool:
    """What each setting says of itself, written again and in other words; the others are at their defaults."""
    if key in WHOLE:
        return 1 <= value < TOO_LARGE and float(value).is_integer()
    if key == "max_skip_rate":
        return 0 < value <= 1
    low, high = {
        "init_scale": (DEFAULTS.min_scale, DEFAULTS.max_scale),
        "min_scale": (2**-24, DEFAULTS.init_scale),
        "max_scale": (DEFAULTS.init_scale, 2**31),
        "growth_factor": (2, TOO_LARGE),
        "backoff_factor": (0, 0.5),
    }[key]
    return is_power_of_two(value) and low <= value <= high


def refusal(key: str, value: object, code: str = "value-not-allowed") -> Fp16PatchError:
    with raises_code(code) as caught:
        LossScaling.from_mapping({key: value})
    return caught.value


@UNTIMED
@given(settings())
def test_powers_of_two_are_accepted_and_kept(chosen: dict[str, float]) -> None:
    assert LossScaling.from_mapping(chosen).as_dict() == DEFAULTS.as_dict() | chosen


@UNTIMED
@given(st.sampled_from(KEYS), NUMBERS)
def test_a_number_is_accepted_exactly_when_it_is_allowed(key: str, value: float) -> None:
    if allowed(key, value):
        kept = int(float(value)) if key in WHOLE else float(value)
        assert getattr(LossScaling.from_mapping({key: value}), key) == kept
    else:
        error = refusal(key, value)
        assert error.allowed
        shown = [value, float(value)] if abs(value) < TOO_LARGE else [value]
        if any(f"fp16_patch.loss_scaling.{key}={number!r}" in error.what for number in shown):
            assert key in (error.next_step or "")
        else:  # alone it could be used, but not with the other two scales
            assert key in SCALES
            assert is_power_of_two(value)
            assert f"{key}={value:g}" in error.allowed


@UNTIMED
@given(st.sampled_from(KEYS), NOT_NUMBERS)
def test_what_is_not_a_number_is_refused(key: str, value: object) -> None:
    assert f"fp16_patch.loss_scaling.{key}={as_typed(value)}" in refusal(key, value).what


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0, -1, 1.5, 3, True, "2"])
def test_usual_mistakes_are_refused(key: str, value: object) -> None:
    if key in WHOLE and value == 3:
        return
    assert f"fp16_patch.loss_scaling.{key}={as_typed(value)}" in refusal(key, value).what


@UNTIMED
@given(st.integers(-24, 31), st.integers(-24, 31), st.integers(-24, 31))
def test_the_scales_are_accepted_exactly_when_they_are_in_order(low: int, start: int, high: int) -> None:
    chosen = {"min_scale": 2.0**low, "init_scale": 2.0**start, "max_scale": 2.0**high}
    if low <= start <= high:
        assert LossScaling.from_mapping(chosen).init_scale == 2.0**start
        return
    with raises_code("value-not-allowed") as caught:
        LossScaling.from_mapping(chosen)
    named = "min_scale" if low > high else "init_scale"
    assert f"fp16_patch.loss_scaling.{named}={chosen[named]!r}" in caught.value.what
    assert f"max_scale={2.0**high:g}" in (caught.value.allowed or "")


@pytest.mark.parametrize("key", SCALES)
@pytest.mark.parametrize("value", [2.0**-25, 2.0**32])
def test_no_scale_is_outside_what_float32_can_divide_by(key: str, value: float) -> None:
    """Also when all three agree on it."""
    with raises_code("value-not-allowed", "2**-24 to 2**31"):
        LossScaling.from_mapping(dict.fromkeys(SCALES, value))
    assert f"fp16_patch.loss_scaling.{key}={as_typed(value)}" in refusal(key, value).what


def test_a_scale_that_never_grows_is_its_own_ceiling() -> None:
    """torch takes a growth factor of 1 for that; its refusal says how to do it here."""
    assert "max_scale=init_scale" in (refusal("growth_factor", 1.0).allowed or "")
    assert LossScaling(max_scale=65536.0).max_scale == LossScaling().init_scale


@UNTIMED
@given(st.text().filter(lambda key: key not in KEYS))
def test_an_unknown_key_is_refused_by_name(key: str) -> None:
    error = refusal(key, 2.0, "unknown-setting")
    assert f"fp16_patch.loss_scaling.{key}=2.0" in error.what
    assert error.allowed == ", ".join(KEYS)


@pytest.mark.parametrize("settings", [65536, False, "init_scale", ["init_scale"]])
def test_one_value_instead_of_the_group_is_refused(settings: object) -> None:
    with raises_code("wrong-type", f"fp16_patch.loss_scaling={as_typed(settings)} "):
        LossScaling.from_mapping(settings)  # type: ignore[arg-type]


@UNTIMED
@given(settings())
def test_the_environment_carries_every_bit(chosen: dict[str, float]) -> None:
    precision = Precision(loss_scaling=LossScaling.from_mapping(chosen))
    assert Precision.from_mapping(json.loads(precision.to_environment())) == precision


def test_the_keys_are_torch_s_and_the_defaults_the_paper_s() -> None:
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    torch_s = inspect.signature(ShardedGradScaler).parameters
    as_torch = {key: torch_s[key].default for key in TORCH_S} | {"growth_interval": 400}
    assert {key: DEFAULTS.as_dict()[key] for key in TORCH_S} == as_torch


def test_the_defaults_of_the_other_settings() -> None:
    """torch's behaviour in ordinary training, ended at 1 and far above any useful scale."""
    others = {key: value for key, value in DEFAULTS.as_dict().items() if key not in TORCH_S}
    assert others == {
        "hysteresis": 1,
        "min_scale": 1.0,
        "max_scale": 2.0**31,
        "max_consecutive_skips": 20,
        "max_skip_rate": 0.1,
        "skip_rate_window": 200,
    }


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, math.nan, math.inf, True, "0.1", None])
def test_a_skip_rate_that_is_not_a_share_is_refused(rate: object) -> None:
    with raises_code("value-not-allowed", "max_skip_rate"):
        LossScaling(max_skip_rate=rate)  # type: ignore[arg-type]


def test_as_many_skips_are_allowed_spread_out_as_in_a_row() -> None:
    assert DEFAULTS.max_skips_in_window == DEFAULTS.max_consecutive_skips
    assert LossScaling(max_consecutive_skips=50).max_skips_in_window == 50, "or it could not be reached"
    assert LossScaling(max_skip_rate=0.29, skip_rate_window=100).max_skips_in_window == 29


def test_the_floor_is_reached_before_the_run_is_stopped() -> None:
    backoffs = math.log2(DEFAULTS.init_scale / DEFAULTS.min_scale)
    assert backoffs < DEFAULTS.max_consecutive_skips
