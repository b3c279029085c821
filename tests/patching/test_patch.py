# SPDX-License-Identifier: Apache-2.0
"""A declaration that contradicts itself fails where it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fp16_patch.patching import Patch, Release, validate_plan

Declare = Callable[..., Patch]
KNOWN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"target": "acme.optim.step"}, "of the form"),
        ({"target": "acme.optim:"}, "of the form"),
        ({"target": "acme.optim:a b"}, "of the form"),
        ({"target": "__main__:main"}, "patch what it imports"),
        ({"also_bound": ("acme.trainer",)}, "of the form"),
        ({"name": "Two Words"}, "slug"),
        ({"versions": "0.9.x"}, "0.9.x"),
        ({"versions": " "}, "versions of acme-rl is empty"),
        ({"reason": ""}, "reason is empty"),
        ({"remove_when": ""}, "remove_when is empty"),
        ({"kind": "patch", "parameters": None}, "not one of wrap, replace, add"),
        ({"parameters": None}, "only a wrap, names its parameters"),
        ({"kind": "add", "parameters": ()}, "only a wrap, names its parameters"),
        ({"kind": "replace"}, "pins the fingerprint"),
        ({"kind": "replace", "fingerprint": KNOWN.upper()}, "16 lower-case hexadecimal"),
        ({"kind": "add", "fingerprint": KNOWN}, "no source to pin"),
        ({"kind": "add", "also_bound": ("acme.trainer:step",)}, "no other name"),
    ],
)
def test_a_wrong_declaration_raises_and_says_why(declare: Declare, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        declare(**{"target": "acme.optim:step", **wrong})


@pytest.mark.parametrize(
    ("versions", "version", "accepted"),
    [
        ("==0.9.1", "0.9.1+cpu", True),
        (">=0.9,<0.10", "0.9.2.dev3", True),
        (">=0.9,<0.10", "0.10.0rc1", False),
        (">=0.9,<0.10", "0.8.0", False),
        (">=0.9", "unknown", False),
    ],
)
def test_versions_accept_local_and_pre_releases(versions: str, version: str, accepted: bool) -> None:
    assert (version in Release("acme-rl", versions)) is accepted


def test_a_plan_refuses_two_patches_of_one_name(declare: Declare) -> None:
    with pytest.raises(ValueError, match="two patches are called 'same'"):
        validate_plan([declare("acme.a:f", name="same"), declare("acme.b:f", name="same")])


def test_a_plan_refuses_a_replacement_that_drops_an_earlier_wrap(declare: Declare) -> None:
    wrap, replacement = declare("acme.a:f", name="wrap"), declare("acme.a:f", name="new", fingerprint=KNOWN)
    assert validate_plan([replacement, wrap]) == (replacement, wrap)
    with pytest.raises(ValueError, match="'new' would drop 'wrap'"):
        validate_plan([wrap, replacement])
