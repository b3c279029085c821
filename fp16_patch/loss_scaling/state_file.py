# SPDX-License-Identifier: Apache-2.0
"""Save and load a scaler's state: one small JSON file next to a checkpoint, checked before it is used."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.files import write_atomically
from fp16_patch.precision.loss_scaling import LIMITS, LossScaling

FILE = "loss_scaler.json"
FORMAT = "fp16_patch.loss_scaler/1"
COUNTS = ("updates", "skipped", "consecutive", "growths", "backoffs")
KEYS = {"scale", "growth_tracker", "hysteresis_left", "counts", "history", "settings"}
# Files of earlier versions lack these.
OPTIONAL_COUNTS = ("losses_not_finite",)
OPTIONAL_KEYS = {"recent_skips"}
OPTIONAL_SETTINGS = {"max_skip_rate", "skip_rate_window"}

HISTORY = 200
"""Entries of the history; older ones are dropped."""

State = dict[str, Any]


def save(state: State, folder: str | Path) -> Path:
    """Write ``state``, a scaler's ``state_dict()``, into ``folder`` atomically, and return the file's path."""
    return write_atomically(Path(folder) / FILE, to_text(state))


def load(path: str | Path) -> State | None:
    """Return the state that :func:`save` wrote to the file ``path``; None if the file does not exist.

    Raises:
        Fp16PatchError: The file is damaged, or this package did not write it.
    """
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(f"{type(error).__name__}: {error}", path) from error
    return from_text(text, path)


def to_text(state: State) -> str:
    """Return ``state`` as text, for a file or for one entry of a framework's checkpoint."""
    return json.dumps({"format": FORMAT, **state}, indent=2)


def from_text(text: str, path: str | Path | None = None) -> State:
    """Return the state in ``text``, the inverse of :func:`to_text`; raise :class:`Fp16PatchError` if it is not one."""
    try:
        state = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:  # some numbers and nestings are refused by Python
        raise _unusable(f"it is not JSON ({error})", path) from error
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise _unusable(f"its format is not {FORMAT!r}", path)
    return validate(state, path)


def resumption(
    saved: State | None, scale: float, settings: LossScaling, folder: str | Path, missing: str = FILE
) -> str:
    """Return a line for the log: at which ``scale`` training resumes, from ``saved`` or without (``missing``)."""
    if saved is None:
        return f"WARNING: no {missing} in {folder}: the loss scale starts at {scale:g}"
    line = f"the loss scale resumes at {scale:g}"
    same_start = saved["settings"]["init_scale"] == settings.init_scale
    if same_start and not settings.min_scale <= saved["scale"] <= settings.max_scale:
        bounds = f"min_scale={settings.min_scale:g} and max_scale={settings.max_scale:g}"
        return f"WARNING: {line}: the saved {saved['scale']:g} is not within your {bounds}"
    if saved["settings"] != settings.as_dict():
        line += f" (saved {saved['scale']:g}; your settings differ from the saved ones, and yours apply)"
    return line


def validate(state: Mapping[str, Any], path: str | Path | None = None) -> State:
    """Return ``state``, completed if an earlier version wrote it; raise :class:`Fp16PatchError` if no scaler did."""
    if not isinstance(state, Mapping) or set(state) - OPTIONAL_KEYS != KEYS:
        raise _unusable(f"it should have the keys {_names(KEYS)}, and may have {_names(OPTIONAL_KEYS)}", path)
    if not _scale(state["scale"]):
        raise _unusable(f"scale={state['scale']!r} is not a positive finite number", path)
    for key in ("growth_tracker", "hysteresis_left"):
        if not _count(state[key]):
            raise _unusable(f"{key}={state[key]!r} is not a count", path)
    counts = state["counts"]
    if not isinstance(counts, Mapping) or set(counts) - set(OPTIONAL_COUNTS) != set(COUNTS):
        raise _unusable(f"counts={counts!r} should be {_names(COUNTS)}, and may have {_names(OPTIONAL_COUNTS)}", path)
    if not all(map(_count, counts.values())):
        raise _unusable(f"counts={counts!r} are not all counts", path)
    state = {**state, "counts": {**dict.fromkeys(OPTIONAL_COUNTS, 0), **counts}}
    skips = state.setdefault("recent_skips", [])
    if not isinstance(skips, list) or not all(map(_count, skips)):
        raise _unusable(f"recent_skips={skips!r} is not a list of numbers of updates", path)
    history = state["history"]
    if not isinstance(history, list) or not history or not all(_entry(entry) for entry in history):
        raise _unusable("history is not a list of (updates, scale)", path)
    try:
        settings = LossScaling.from_mapping(state["settings"])
    except (Fp16PatchError, TypeError) as error:
        raise _unusable(f"its settings are not loss-scaling settings: {getattr(error, 'what', error)}", path) from error
    if missing := settings.as_dict().keys() - state["settings"].keys() - OPTIONAL_SETTINGS:
        raise _unusable(f"its settings lack {', '.join(sorted(missing))}", path)
    for why in _impossible(state, settings):
        raise _unusable(why, path)
    return {**state, "settings": settings.as_dict()}


def _impossible(state: Mapping[str, Any], settings: LossScaling) -> Iterator[str]:
    """Yield why no series of updates leads to this state. A program may set a scale that is not a power of two."""
    counts, history = state["counts"], state["history"]
    if not settings.min_scale <= state["scale"] <= settings.max_scale:
        yield f"scale={state['scale']:g} is not within its min_scale and max_scale"
    if state["growth_tracker"] >= settings.growth_interval:
        yield f"growth_tracker={state['growth_tracker']} is not below its growth_interval={settings.growth_interval}"
    if not 1 <= state["hysteresis_left"] <= settings.hysteresis:
        yield f"hysteresis_left={state['hysteresis_left']} is not 1 to its hysteresis={settings.hysteresis}"
    if not counts["consecutive"] <= counts["skipped"] <= counts["updates"]:
        yield f"counts={counts!r} contradict each other"
    if counts["losses_not_finite"] > counts["skipped"]:
        yield f"counts={counts!r} have more losses_not_finite than skipped updates"
    first, skips = max(counts["updates"] - settings.skip_rate_window, 0) + 1, state["recent_skips"]
    if skips != sorted(set(skips)) or (skips and not first <= skips[0] <= skips[-1] <= counts["updates"]):
        yield f"recent_skips={skips!r} are not different updates from {first} to {counts['updates']}"
    if len(skips) > counts["skipped"]:
        yield f"recent_skips={skips!r} are more than the {counts['skipped']} skipped updates"
    updates = [0, *(entry[0] for entry in history), counts["updates"]]
    if updates != sorted(updates) or len(history) > HISTORY:
        yield f"history is not up to {HISTORY} entries in the order of {counts['updates']} updates"
    if not all(LIMITS[0] <= scale <= LIMITS[1] for _, scale in history):
        yield "history holds a scale that no settings allow"
    if len(history) < HISTORY:  # nothing was dropped
        (first, start), moves = history[0], counts["growths"] + counts["backoffs"]
        if first != 0 or math.frexp(start)[0] != 0.5:
            yield f"history starts at {history[0]!r}, not at update 0 with an init_scale"
        if moves >= len(history):
            yield f"counts={counts!r} and a history of {len(history)} scales contradict each other"


def _scale(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _entry(entry: object) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 2 and _count(entry[0]) and _scale(entry[1])


def _unusable(why: str, path: str | Path | None) -> Fp16PatchError:
    where = f"the loss scaler's state in {path}" if path else "the loss scaler's state"
    return Fp16PatchError(
        f"{where} cannot be used: {why}",
        code="scaler-state-unusable",
        allowed=f"what this package wrote next to a checkpoint as {FILE}",
        next_step="restore the file from a copy, or remove it: training then starts at init_scale, with a warning",
    )
