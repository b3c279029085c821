# SPDX-License-Identifier: Apache-2.0
"""The file beside a checkpoint: written whole or not at all; what is damaged or foreign is refused, not guessed at."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises_code

from fp16_patch.engines.fsdp.scaler import FsdpLossScaler
from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.loss_check import BadLoss
from fp16_patch.loss_scaling.state_file import (
    COUNTS,
    FILE,
    KEYS,
    OPTIONAL_COUNTS,
    OPTIONAL_KEYS,
    OPTIONAL_SETTINGS,
    load,
    resumption,
    save,
)

UNTIMED = settings(deadline=None)
OPTIMIZER = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])


def lived_scaler(**chosen: Any) -> FsdpLossScaler:
    """A scaler whose every field differs from a new one's."""
    scaler = FsdpLossScaler(LossScaling(**{"hysteresis": 2, "growth_interval": 3, **chosen}), "cpu")
    for number, finite in enumerate((True, True, True, False, False, False, False, True), 1):
        if number == 7:
            scaler.report_bad_loss(BadLoss("returns", "returns is not finite"))
        scaler.record(OPTIMIZER, finite=finite)
        scaler.update()
    return scaler


STATE = lived_scaler().state_dict()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return save(STATE, tmp_path)


def refused(path: Path, why: str = "") -> Fp16PatchError:
    """One error that names the file; a scaler that was to be restored from it has not changed."""
    scaler = lived_scaler(growth_interval=2)
    before = scaler.state_dict()
    with raises_code("scaler-state-unusable", path, why) as caught:
        scaler.load_state_dict(load(path) or pytest.fail("the file was not found"))
    assert scaler.state_dict() == before
    assert FILE in (caught.value.allowed or "")
    assert caught.value.next_step
    return caught.value


def rewritten(path: Path, **changes: Any) -> Path:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))
    return path


# Written and read.


def test_what_was_saved_is_read(written: Path) -> None:
    assert written.name == FILE
    assert load(written) == json.loads(json.dumps(STATE))


def test_every_field_has_a_value_of_its_own() -> None:
    """Or the test above could not see a field that is dropped."""
    assert STATE["scale"] != STATE["settings"]["init_scale"]
    assert STATE["growth_tracker"] == STATE["hysteresis_left"] == 1
    counts = {"updates": 8, "skipped": 4, "consecutive": 0, "growths": 1, "backoffs": 2, "losses_not_finite": 1}
    assert STATE["counts"] == counts
    assert STATE["history"] == [[0, 2.0**16], [3, 2.0**17], [5, 2.0**16], [6, 2.0**15]]
    assert STATE["recent_skips"] == [4, 5, 6, 7]


def test_a_scaler_is_restored_from_the_file(written: Path) -> None:
    fresh = FsdpLossScaler(LossScaling(hysteresis=2, growth_interval=3), "cpu")
    fresh.load_state_dict(load(written) or {})
    assert fresh.state_dict() == STATE


def test_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert load(tmp_path / FILE) is None
    assert load(tmp_path / "no such folder" / FILE) is None


def test_the_folder_is_made_and_nothing_else_is_left_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "global_step_5" / "actor"
    for _ in range(2):
        save(STATE, folder)
    assert [path.name for path in folder.iterdir()] == [FILE]


@pytest.mark.parametrize("dies_at", ["fsync", "replace"])
def test_a_save_that_dies_leaves_the_old_file(written: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, dies_at, die)
    with pytest.raises(KeyboardInterrupt):
        save(STATE | {"scale": 1.0}, written.parent)
    assert load(written) == STATE


def test_a_save_that_cannot_be_written_leaves_the_old_file(written: Path) -> None:
    with pytest.raises(TypeError):
        save(STATE | {"scale": object()}, written.parent)
    assert load(written) == STATE


# Damaged, foreign.


@UNTIMED
@given(st.data())
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = save(STATE, tmp_path_factory.mktemp("truncated"))
    whole = path.read_text()
    path.write_text(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refused(path, "JSON")


@UNTIMED
@given(st.binary())
def test_bytes_of_any_kind_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / FILE
    path.write_bytes(content)
    refused(path)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)


@UNTIMED
@given(JSON)
def test_any_other_json_is_refused(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.mktemp("json") / FILE
    path.write_text(json.dumps(content))
    refused(path, "format")


def like(value: object) -> object:
    """Equal also where a scale was written as a whole number, which JSON lets anybody do."""
    return json.loads(json.dumps(value), parse_int=float)


@UNTIMED
@given(st.sampled_from(sorted(KEYS | OPTIONAL_KEYS)), JSON)
def test_any_other_value_of_a_key_is_refused_or_used_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    path = rewritten(save(STATE, tmp_path_factory.mktemp("value")), **{key: value})
    try:
        state = load(path)
    except Fp16PatchError:
        refused(path)
    else:
        assert state is not None
        assert like(state[key]) == like(value)
        lived_scaler().load_state_dict(state)


def test_a_file_of_an_earlier_version_is_read(written: Path) -> None:
    """It has no skips of the last window, and no losses that were not finite."""
    content = json.loads(written.read_text())
    for group, missing in (
        (content, OPTIONAL_KEYS),
        (content["counts"], OPTIONAL_COUNTS),
        (content["settings"], OPTIONAL_SETTINGS),
    ):
        for key in missing:
            del group[key]
    written.write_text(json.dumps(content))
    scaler = lived_scaler()
    scaler.load_state_dict(load(written) or {})
    assert scaler.state_dict() == STATE | {"counts": STATE["counts"] | {"losses_not_finite": 0}, "recent_skips": []}


def test_what_torch_saves_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / FILE)
    refused(tmp_path / FILE)


def test_a_folder_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    refused(tmp_path / FILE, "IsADirectoryError")


@pytest.mark.parametrize("format", [None, "fp16_patch.loss_scaler/2", "loss_scaler", 1, ["fp16_patch.loss_scaler/1"]])
def test_another_format_is_refused(written: Path, format: Any) -> None:
    refused(rewritten(written, format=format), "'fp16_patch.loss_scaler/1'")


@pytest.mark.parametrize("key", sorted(KEYS | {"format"}))
def test_a_missing_key_is_refused(written: Path, key: str) -> None:
    content = json.loads(written.read_text())
    del content[key]
    written.write_text(json.dumps(content))
    refused(written, "format" if key == "format" else "keys")


def test_an_extra_key_is_refused(written: Path) -> None:
    refused(rewritten(written, growth_factor=2.0), "keys")


@pytest.mark.parametrize("group", ["counts", "settings"])
@pytest.mark.parametrize("change", ["missing", "extra"])
def test_missing_and_extra_keys_in_a_group_are_refused(written: Path, group: str, change: str) -> None:
    content = json.loads(written.read_text())
    if change == "missing":
        content[group].pop(next(iter(content[group])))
    else:
        content[group]["another"] = 1
    written.write_text(json.dumps(content))
    refused(written, group)


BROKEN_SCALES = ["NaN", "Infinity", "-Infinity", "0", "0.0", "-1.0", '"65536.0"', "true", "null", "[65536.0]", "1e999"]


@pytest.mark.parametrize("scale", [*BROKEN_SCALES, "1" + 400 * "0", "1" + 5000 * "0"])
def test_a_scale_that_cannot_be_one_is_refused(written: Path, scale: str) -> None:
    """As text: JSON of other writers holds numbers that Python's would not write, and some that it cannot read."""
    old = f'"scale": {STATE["scale"]}'
    text = written.read_text()
    assert text.count(old) == 1
    written.write_text(text.replace(old, f'"scale": {scale}'))
    refused(written)


@pytest.mark.parametrize("value", [-1, 1.0, 1.5, math.nan, True, "1", None])
@pytest.mark.parametrize("key", ["growth_tracker", "hysteresis_left", *COUNTS, *OPTIONAL_COUNTS])
def test_what_is_no_count_is_refused(written: Path, key: str, value: Any) -> None:
    if key in (*COUNTS, *OPTIONAL_COUNTS):
        refused(rewritten(written, counts=STATE["counts"] | {key: value}), "counts={")
    else:
        refused(rewritten(written, **{key: value}), f"{key}={value!r}")


@pytest.mark.parametrize(
    "history",
    [
        [],
        {},
        None,
        "[[0, 1.0]]",
        [0, 1.0],
        [[0]],
        [[0, 1.0, 2.0]],
        [[-1, 1.0]],
        [[0, 0.0]],
        [[0, math.nan]],
        [["0", 1.0]],
    ],
)
def test_what_is_no_history_is_refused(written: Path, history: Any) -> None:
    refused(rewritten(written, history=history), "history")


@pytest.mark.parametrize(
    "changed", [{"init_scale": 3.0}, {"init_scale": math.nan}, {"growth_factor": 1.0}, {"hysteresis": "2"}]
)
def test_settings_that_were_never_allowed_are_refused(written: Path, changed: dict[str, Any]) -> None:
    (key,) = changed
    refused(rewritten(written, settings=STATE["settings"] | changed), f"fp16_patch.loss_scaling.{key}=")


def test_nesting_without_end_is_refused(written: Path) -> None:
    written.write_text("[" * 100_000)
    refused(written)


@pytest.mark.parametrize(
    "changed",
    [
        {"scale": 1e300},
        {"scale": 1e-30},
        {"scale": 0.5},
        {"growth_tracker": 3},
        {"growth_tracker": 10**9},
        {"hysteresis_left": 0},
        {"hysteresis_left": 99},
        {"counts": STATE["counts"] | {"updates": 2}},
        {"counts": STATE["counts"] | {"skipped": 9}},
        {"counts": STATE["counts"] | {"losses_not_finite": 5}},
        {"recent_skips": [4, 5, 6, 9]},
        {"recent_skips": [0, 5]},
        {"recent_skips": [6, 5]},
        {"recent_skips": [5, 5]},
        {"recent_skips": [1, 2, 3, 4, 5]},
        {"counts": STATE["counts"] | {"consecutive": 5}},
        {"counts": STATE["counts"] | {"backoffs": 3}},
        {"history": [[0, 3.3]]},
        {"history": [[1, 2.0**16], *STATE["history"][1:]]},
        {"history": [*STATE["history"][:3], [9, 2.0**15]]},
        {"history": [*STATE["history"][::-1]]},
        {"history": [*STATE["history"][:3], [6, 1e300]]},
        {"history": [[0, 2.0**16]] * 201},
    ],
    ids=str,
)
def test_what_no_updates_lead_to_is_refused(written: Path, changed: dict[str, Any]) -> None:
    """Each value alone could be one; with the settings and counts in the same file it cannot."""
    (key,) = changed
    assert key in refused(rewritten(written, **changed)).what


def test_a_scale_that_a_program_has_set_is_restored(tmp_path: Path) -> None:
    """torch's ``update(new_scale)`` takes any number; the bounds are ours."""
    scaler = lived_scaler()
    for scale in (1000.0, 3.3):
        scaler.ensure_scale()
        scaler.update(scale)
    resumed = FsdpLossScaler(scaler.settings, "cpu")
    resumed.load_state_dict(load(save(scaler.state_dict(), tmp_path)) or {})
    assert resumed.get_scale() == pytest.approx(3.3)


@pytest.mark.parametrize(("saved", "bounded"), [(2.0**-20, 1.0), (2.0**31, 2.0**20)])
def test_a_scale_out_of_this_run_s_bounds_becomes_the_nearest_and_says_so(
    tmp_path: Path, saved: float, bounded: float
) -> None:
    first = FsdpLossScaler(LossScaling(min_scale=2.0**-24), "cpu")
    first.ensure_scale()
    first.update(saved)
    state = load(save(first.state_dict(), tmp_path)) or {}
    scaler = FsdpLossScaler(LossScaling(max_scale=2.0**20), "cpu")
    scaler.load_state_dict(state)
    assert scaler.get_scale() == bounded
    assert scaler.history[-1][1] == bounded
    said = resumption(state, scaler.get_scale(), scaler.settings, tmp_path)
    assert said == (
        f"WARNING: the loss scale resumes at {bounded:g}: the saved {saved:g} is not within your "
        f"min_scale=1 and max_scale={2**20:g}"
    )
