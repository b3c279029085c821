# SPDX-License-Identifier: Apache-2.0
"""Configured sampling that makes mu another distribution is refused where log-probs are read, otherwise reported."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from raising import check_error, raises_code

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config.sampling import accepted_requests, accepted_settings, problems
from fp16_patch.frameworks.verl.controller import plain_list
from fp16_patch.frameworks.verl.entry import apply_flag
from fp16_patch.frameworks.verl.rollout_health import check_sampling
from fp16_patch.precision import Precision
from fp16_patch.rollout_health.sampling_settings import ACCEPT, CUT_SAMPLES, UNREAD

ROLLOUT = "actor_rollout_ref.rollout"
VLLM = f"{ROLLOUT}.engine_kwargs.vllm"
RAW, COOL = {"logprobs_mode": "raw_logprobs"}, {"temperature": 0.7}
RAW_IS_RIGHT = f"{ROLLOUT}.logprobs_mode=raw_logprobs at temperature 1"
SYNTHETIC = {"method": "ngram", "rejection_sample_method": "synthetic"}
ACCEPTS = Precision(allow_truncated_sampling=True)


def vllm(**arguments):
    return {"engine_kwargs": {"vllm": arguments}}


REFUSED = [
    # settings of the rollout, and what the error must name
    ({"top_p": 0.9}, f"{ROLLOUT}.top_p=0.9"),
    ({"top_k": 20}, f"{ROLLOUT}.top_k=20"),
    ({"temperature": 0}, f"{ROLLOUT}.temperature=0"),
    ({"temperature": 0.001}, f"{ROLLOUT}.temperature=0.001"),
    (vllm(logits_processors=["my.Processor"]), f"{VLLM}.logits_processors=['my.Processor']"),
    (vllm(**{"logits-processors": "my.Processor"}), f"{VLLM}.logits-processors=my.Processor"),
    (vllm(speculative_config=SYNTHETIC), f"{VLLM}.speculative_config="),
    (RAW | COOL, f"{ROLLOUT}.logprobs_mode=raw_logprobs"),
    ({"logprobs_mode": None} | COOL, f"{ROLLOUT}.logprobs_mode=raw_logprobs"),
    (vllm(**{"logprobs-mode": "raw_logprobs"}) | COOL, f"{VLLM}.logprobs-mode=raw_logprobs"),
    ({"logprobs_mode": "raw_logits"}, f"{ROLLOUT}.logprobs_mode=raw_logits"),
    ({"logprobs_mode": "processed_logits"}, f"{ROLLOUT}.logprobs_mode=processed_logits"),
    (RAW | vllm(logprobs_mode="processed_logprobs") | {"top_p": 0.9}, f"{ROLLOUT}.top_p=0.9"),
]

WITHOUT_EFFECT = [
    {"top_p": 1},
    {"top_k": 0},
    COOL,
    RAW,
    RAW | COOL | vllm(logprobs_mode="processed_logprobs"),
    COOL | vllm(logprobs_mode=None),
    {"repetition_penalty": 1.3},
    {"do_sample": False},
    {"ignore_eos": True},
    vllm(override_generation_config={"top_p": 0.5, "temperature": 0.1}, generation_config="auto"),
    vllm(logits_processors=[], speculative_config={"method": "ngram"}),
    {"val_kwargs": {"top_p": 0.7, "top_k": 5, "temperature": 0.1}},
]


def configure(settings, **algorithm):
    """Return verl's own section of the rollout with these settings, and nothing else of its configuration."""
    spec = importlib.util.find_spec("verl")
    rollout = OmegaConf.load(Path(spec.submodule_search_locations[0], "trainer", "config", "rollout", "rollout.yaml"))
    rollout = OmegaConf.merge(rollout, {"calculate_log_probs": True}, settings)
    return OmegaConf.create(
        {"actor_rollout_ref": {"rollout": rollout}, "algorithm": {"adv_estimator": "grpo"} | algorithm}
    )


def accepted(config, precision=ACCEPTS):
    return {entry["key"]: entry["accepted_by"] for entry in accepted_settings(config, precision)}


@pytest.mark.parametrize(("settings", "named"), REFUSED, ids=str)
def test_refused_where_log_probs_are_read(settings, named):
    config = configure(settings)
    (problem,) = problems(config, Precision())
    check_error(problem, "sampling-changed", named, "allowed: ", "next step: ", ACCEPT)
    assert problems(config, ACCEPTS) == []
    assert list(accepted(config).values()) == [ACCEPT]


@pytest.mark.parametrize("settings", WITHOUT_EFFECT, ids=str)
def test_a_setting_without_effect_is_neither_refused_nor_reported(settings):
    assert problems(configure(settings), Precision()) == []
    assert accepted(configure(settings)) == {}


def test_raw_log_probs_at_temperature_1_are_right_whatever_is_cut():
    config = configure(RAW | {"top_p": 0.9, "top_k": 20} | vllm(logits_processors=["my.Processor"]))
    assert problems(config, Precision()) == []
    keys = (f"{ROLLOUT}.top_p", f"{ROLLOUT}.top_k", f"{VLLM}.logits_processors")
    assert accepted(config, Precision()) == dict.fromkeys(keys, RAW_IS_RIGHT)
    assert accepted_requests(config) == {("temperature", "1"), ("top_p", "0.9"), ("top_k", "20")}


@pytest.mark.parametrize(
    ("settings", "log_probs"),
    [({}, "renormalised"), (RAW, "of the whole distribution"), (RAW | COOL, "of the whole distribution")],
)
def test_an_entry_says_what_the_log_probs_are_next_to_the_cut(settings, log_probs):
    config = configure(settings | {"top_p": 0.9})
    (entry,) = [entry for entry in accepted_settings(config, ACCEPTS) if entry["key"].endswith("top_p")]
    assert entry["why"].startswith(CUT_SAMPLES)
    assert log_probs in entry["why"]
    assert ("renormalised" in entry["why"]) == (log_probs == "renormalised")


@pytest.mark.parametrize("settings", [{}, RAW])
def test_the_stop_says_whether_log_probs_or_samples_are_wrong(monkeypatch, settings):
    monkeypatch.setenv(envs.PRECISION, Precision().to_environment())
    trainer = SimpleNamespace(config=configure(settings), global_steps=3)
    with pytest.raises(Fp16PatchError) as stopped:
        check_sampling(trainer, Counter({("top_p", "0.8"): 4}), {})
    wrong_log_probs = "every importance weight and mismatch metric is wrong" in stopped.value.what
    wrong_samples = f"The log-probs are of that distribution ({RAW_IS_RIGHT})" in stopped.value.what
    assert (wrong_log_probs, wrong_samples) == (not settings, bool(settings))


def test_a_mode_of_log_probs_that_nobody_reads_has_no_effect():
    config = configure(RAW | COOL | {"top_p": 0.9, "calculate_log_probs": False})
    assert problems(config, Precision()) == []
    assert accepted(config, Precision()) == {f"{ROLLOUT}.top_p": UNREAD}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_flag_refuses_before_launch(compose, precision):
    """verl asks for log-probs by default."""
    flag, top_p = f"+precision@_global_={precision}", f"{ROLLOUT}.top_p=0.9"
    with raises_code("sampling-changed", top_p):
        apply_flag(compose(flag, top_p))


def test_the_flag_warns_and_reports_what_is_accepted(compose, capsys):
    config = compose("+precision@_global_=fp16", f"{ROLLOUT}.top_p=0.9", ACCEPT)
    apply_flag(config)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith(f"fp16_patch: {ROLLOUT}.top_p=0.9: ")]) == 1
    (entry,) = json.loads(json.dumps(plain_list(config.fp16_patch.sampling)))
    assert (entry["key"], entry["value"], entry["accepted_by"]) == (f"{ROLLOUT}.top_p", 0.9, ACCEPT)


@pytest.mark.parametrize(
    ("settings", "precision", "parameter", "changed", "stops"),
    [
        ({}, Precision(), ("top_p", "0.8"), 4, True),
        ({}, Precision(), ("temperature", "0.7"), 4, True),
        (COOL, Precision(), ("temperature", "0.7"), 0, False),
        ({"top_p": 0.8}, ACCEPTS, ("top_p", "0.8"), 4, False),
        (RAW | {"top_p": 0.8}, Precision(), ("top_p", "0.8"), 0, False),
        (RAW | {"top_p": 0.8}, Precision(), ("top_p", "0.5"), 4, True),
        ({"top_p": 0.8, "calculate_log_probs": False}, Precision(), ("top_p", "0.8"), 4, False),
    ],
)
def test_requests_of_an_accepted_setting_do_not_stop_the_run(
    monkeypatch, settings, precision, parameter, changed, stops
):
    monkeypatch.setenv(envs.PRECISION, precision.to_environment())
    trainer = SimpleNamespace(config=configure(settings), global_steps=3)
    requests, metrics = Counter({parameter: 4}), {}
    if stops:
        with raises_code("sampling-changed", f"{parameter[0]}={parameter[1]} (4 requests)"):
            check_sampling(trainer, requests, metrics)
    else:
        check_sampling(trainer, requests, metrics)
    assert metrics["rollout/changed_sampling"] == changed


def test_the_greedy_baseline_of_remax_is_accepted():
    assert ("temperature", "0") in accepted_requests(configure({}, adv_estimator="remax"))
    assert ("temperature", "0") not in accepted_requests(configure({}))
