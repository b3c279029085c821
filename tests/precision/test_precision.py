# SPDX-License-Identifier: Apache-2.0
"""The flag's meaning, and its journey through the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from raising import raises_code

from fp16_patch import envs
from fp16_patch.frameworks.verl import conf
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.precision import Precision, long_name, short_name

GOOD = {"train_dtype": "fp16", "rollout_dtype": "fp16"}


@pytest.mark.parametrize(
    ("alias", "short", "long"),
    [
        ("fp16", "fp16", "float16"),
        ("half", "fp16", "float16"),
        ("float16", "fp16", "float16"),
        ("torch.float16", "fp16", "float16"),
        ("BF16", "bf16", "bfloat16"),
        ("bfloat16", "bf16", "bfloat16"),
        ("float32", "fp32", "float32"),
    ],
)
def test_aliases(alias: str, short: str, long: str) -> None:
    assert short_name("any.key", alias) == short
    assert long_name(short) == long
    assert Precision(alias, alias) == Precision(short, short)


@pytest.mark.parametrize("name", ["fp8", "float64", "auto", "", None, 16, True, "fp16 "])
def test_a_name_that_is_no_precision_is_refused_with_its_key(name: str | int | None) -> None:
    typed = {None: "null", True: "true"}.get(name, repr(name))
    with raises_code("not-a-precision", f"critic.fsdp.dtype={typed} ") as caught:
        short_name("critic.fsdp.dtype", name)
    assert caught.value.allowed == "fp16 (float16), bf16 (bfloat16), fp32 (float32)"


@pytest.mark.parametrize("side", ["train", "rollout"])
def test_each_side_is_refused_under_its_own_key(side: str) -> None:
    with raises_code("not-a-precision", f"fp16_patch.{side}_dtype='fp8'"):
        Precision(**{f"{side}_dtype": "fp8"})


def test_the_name_says_where_the_sides_differ() -> None:
    assert Precision().name == "fp16"
    assert Precision("bf16", "float16").name == "bf16 train, fp16 rollout"


@pytest.mark.parametrize("rollout", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("train", ["fp16", "bf16", "fp32"])
def test_all_nine_pairs_survive_the_environment(monkeypatch: pytest.MonkeyPatch, train: str, rollout: str) -> None:
    precision = Precision(train, rollout, LossScaling(init_scale=1024, growth_interval=7))
    monkeypatch.setenv(envs.PRECISION, precision.to_environment())
    assert Precision.from_environment() == precision


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_the_flag_is_off(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(envs.PRECISION, raising=False)
    if value is not None:
        monkeypatch.setenv(envs.PRECISION, value)
    assert Precision.from_environment() is None


@pytest.mark.parametrize("value", ["1", "fp16", "{", "null", "[]", '"fp16"', "{'train_dtype': 'fp16'}"])
def test_garbage_in_the_variable_is_refused_and_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(envs.PRECISION, value)
    with raises_code("environment-unreadable", f"{envs.PRECISION}={value!r}") as caught:
        Precision.from_environment()
    assert caught.value.next_step is not None
    assert f"unset {envs.PRECISION}" in caught.value.next_step


@pytest.mark.parametrize(
    ("node", "code", "named"),
    [
        ({}, "setting-missing", "fp16_patch.train_dtype"),
        ({"train_dtype": "fp16"}, "setting-missing", "fp16_patch.rollout_dtype"),
        ({"train_dtype": None, "rollout_dtype": "fp16"}, "setting-missing", "fp16_patch.train_dtype"),
        (GOOD | {"train_dtype": "fp8"}, "not-a-precision", "fp16_patch.train_dtype='fp8'"),
        (GOOD | {"dtype": "fp16"}, "unknown-setting", "fp16_patch.dtype='fp16'"),
        (GOOD | {"loss_scaling": {"scale": 2.0}}, "unknown-setting", "fp16_patch.loss_scaling.scale=2.0"),
        (GOOD | {"loss_scaling": 65536}, "wrong-type", "fp16_patch.loss_scaling=65536"),
        (GOOD | {"loss_scaling": False}, "wrong-type", "fp16_patch.loss_scaling=false"),
        (GOOD | {"loss_scaling": ["init_scale"]}, "wrong-type", "fp16_patch.loss_scaling=['init_scale']"),
    ],
)
def test_a_wrong_node_is_refused_by_key_and_value(
    monkeypatch: pytest.MonkeyPatch, node: dict[str, object], code: str, named: str
) -> None:
    monkeypatch.setenv(envs.PRECISION, json.dumps(node))
    with raises_code(code, named):
        Precision.from_environment()


def test_a_forked_process_with_another_text_gets_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(envs.PRECISION, Precision("fp16", "bf16").to_environment())
    assert Precision.current() is Precision.current()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.environ[envs.PRECISION] = Precision("bf16", "fp32").to_environment()
        os.write(writer, Precision.current().name.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 99) == b"bf16 train, fp32 rollout"
    assert Precision.current() == Precision("fp16", "bf16")
    monkeypatch.delenv(envs.PRECISION)
    with raises_code("flag-not-propagated", envs.PRECISION):
        Precision.current()


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
def test_the_config_group_has_the_defaults_of_the_dataclasses(name: str) -> None:
    node = yaml.safe_load((Path(conf.__file__).parent / f"precision/{name}.yaml").read_text())["fp16_patch"]
    assert node.pop("report_path") is None
    assert node.pop("applied").startswith("${fp16_patch_callback_did_not_run:")
    assert Precision.from_mapping(node) == Precision(name, name)
    if name == "fp16":  # the group lists every setting
        assert node == Precision().as_mapping()


def test_loss_scaling_may_be_left_out() -> None:
    assert Precision.from_mapping(GOOD | {"loss_scaling": None}).loss_scaling == LossScaling()
