# SPDX-License-Identifier: Apache-2.0
"""Recipe values reach Hydra unchanged, whatever characters they hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fp16_patch.lab.arms.overrides import key_value, merge, render

hydra_parser = pytest.importorskip("hydra.core.override_parser.overrides_parser")

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = PLAIN | st.lists(PLAIN, max_size=4)


@settings(max_examples=400, deadline=None)
@given(VALUES)
@example("1e-9_2")  # unquoted, this threshold is the float 1e-92
@example("1e-9_C")
@example("${algorithm.rollout_correction}")
@example("it's \\' and \\\\'")
@example("ends in \\")
@example("null")
@example("True")
@example("")
@example("a=b,c")
@example("/data/train.parquet")
@example("openai/gsm8k")
def test_hydra_reads_back_what_the_recipe_says(value: object) -> None:
    override = hydra_parser.OverridesParser.create().parse_override(f"+some.key={render(value)}")
    got = override.value()
    read = [_plain(item) for item in got] if isinstance(got, list) else _plain(got)
    assert read == value
    assert type(read) is type(value)


def _plain(value: object) -> object:
    return value.text if hasattr(value, "text") else value


def test_not_a_number_survives_too() -> None:
    got = hydra_parser.OverridesParser.create().parse_override(f"k={render(math.nan)}").value()
    assert math.isnan(got)


def test_a_later_group_wins_and_keeps_the_plus_hydra_needs() -> None:
    platform = ["+a.new=1", "b=1", "c=1"]
    recipe = ["a.new=2", "++c=2"]
    assert merge([platform, recipe]) == ["+a.new=2", "b=1", "++c=2"]


def test_key_value_drops_only_the_plus() -> None:
    assert key_value("++a.b=x=y") == ("a.b", "x=y")
