# SPDX-License-Identifier: Apache-2.0
"""Find the shipped recipes."""

from __future__ import annotations

from pathlib import Path

from fp16_patch.errors import Fp16PatchError


def folder() -> Path:
    """Return the folder of the shipped recipes: in an installed wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    in_wheel, in_checkout = package / "data", package.parents[2] / "recipes"
    for place in (in_wheel, in_checkout):
        if any(place.glob("*.yaml")):
            return place
    raise Fp16PatchError(
        f"no recipes in {in_wheel} or {in_checkout}",
        code="recipe-not-found",
        next_step="reinstall fp16-patch, or give the path of a recipe",
    )
