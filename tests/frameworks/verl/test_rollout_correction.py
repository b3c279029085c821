# SPDX-License-Identifier: Apache-2.0
"""``algorithm.rollout_correction`` reaches the loss that the workers run, or the run is refused."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from omegaconf import OmegaConf
from raising import raises_code

from fp16_patch.frameworks.verl.controller import plain_list
from fp16_patch.frameworks.verl.entry import apply_flag

RC = "algorithm.rollout_correction"
LOSS = "actor_rollout_ref.actor.policy_loss"
PG_SEQ_IS = (f"{RC}.bypass_mode=true", f"{RC}.loss_type=reinforce", f"{RC}.rollout_is=sequence")
IN_STEP = "{bypass_mode:true,loss_type:reinforce,rollout_is:sequence,rollout_is_threshold:2.0,%s}"
REST = "rollout_rs:null,rollout_rs_threshold:null,rollout_is_batch_normalize:false"


def loss_config(config):
    """What a worker of verl builds from the configuration it is sent."""
    from verl.utils.config import omega_conf_to_dataclass

    return omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss)


def test_stock_verl_leaves_the_workers_on_ppo_clip(compose):
    """The fault itself: when this fails, verl hands bypass mode on and our rule can go."""
    loss = loss_config(compose(*PG_SEQ_IS))
    assert loss.loss_mode == "vanilla"
    assert loss.rollout_correction.loss_type == "ppo_clip"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("threshold", "read"), [("1e9", 1e9), ("3", 3), ('"1e-9_3"', "1e-9_3")])
def test_bypass_mode_reaches_the_loss_with_all_its_settings(compose, precision, threshold, read):
    config = compose(f"+precision@_global_={precision}", *PG_SEQ_IS, f"{RC}.rollout_is_threshold={threshold}")
    apply_flag(config)
    loss = loss_config(config)
    assert loss.loss_mode == "bypass_mode"
    assert loss.rollout_correction.get("loss_type") == "reinforce"
    assert loss.rollout_correction.get("rollout_is") == "sequence"
    assert loss.rollout_correction.get("rollout_is_threshold") == read


def test_the_change_can_be_written_into_the_precision_report(compose):
    config = compose("+precision@_global_=fp16", *PG_SEQ_IS)
    changed = apply_flag(config)
    assert json.loads(json.dumps(plain_list(config.fp16_patch.changes))) == [asdict(change) for change in changed]


@pytest.mark.parametrize(
    "theirs",
    [
        (f"{LOSS}.loss_mode=bypass_mode",),
        (f"+{LOSS}.rollout_correction=${{{RC}}}", f"{LOSS}.loss_mode=bypass_mode"),
        (f"+{LOSS}.rollout_correction={IN_STEP % REST}",),
    ],
)
def test_the_users_own_repair_is_accepted(compose, theirs):
    config = compose("+precision@_global_=fp16", *PG_SEQ_IS, *theirs)
    apply_flag(config)
    assert loss_config(config).rollout_correction.get("loss_type") == "reinforce"


def test_without_bypass_mode_nothing_of_the_loss_is_touched(compose):
    config = compose("+precision@_global_=fp16", f"{RC}.rollout_is=token")
    before = OmegaConf.to_container(config.actor_rollout_ref.actor.policy_loss)
    apply_flag(config)
    assert OmegaConf.to_container(config.actor_rollout_ref.actor.policy_loss) == before


REFUSED = {
    "another loss": ((*PG_SEQ_IS, f"{LOSS}.loss_mode=gspo"), f"{LOSS}.loss_mode=gspo"),
    "PPO-clip, said aloud": ((*PG_SEQ_IS, f"{LOSS}.loss_mode=vanilla"), f"{LOSS}.loss_mode=vanilla"),
    "other settings": ((*PG_SEQ_IS, f"+{LOSS}.rollout_correction={{rollout_is:token}}"), f"{LOSS}.rollout_correction="),
    "the loss alone": ((f"{LOSS}.loss_mode=bypass_mode",), f"{LOSS}.loss_mode=bypass_mode"),
    "settings nobody reads": ((f"+{LOSS}.rollout_correction={{rollout_is:token}}",), f"{LOSS}.rollout_correction"),
    "bounds read as a number": (
        (f"{RC}.rollout_is=sequence", f"{RC}.rollout_is_threshold=1e-9_2"),
        "rollout_is_threshold=1e-92",
    ),
    "bounds read as a number in bypass mode": ((*PG_SEQ_IS, f"{RC}.rollout_is_threshold=0.5_5"), "=0.55"),
    "bounds in a mapping": ((f"{RC}={{rollout_is:token,rollout_is_threshold:2_5}}",), "2_5"),
    "no log-probs to correct with": (
        (f"{RC}.rollout_is=token", "actor_rollout_ref.rollout.calculate_log_probs=False"),
        "calculate_log_probs=False",
    ),
}


CONTRADICTIONS = ("another loss", "PPO-clip, said aloud", "other settings", "no log-probs to correct with")
"""Settings that the correction's own rules would set to something else."""


@pytest.mark.parametrize("case", REFUSED)
def test_what_verl_would_ignore_in_silence_is_refused(compose, case):
    overrides, named = REFUSED[case]
    config = compose("+precision@_global_=fp16", *overrides)
    before = OmegaConf.to_container(config, resolve=False)
    with raises_code("setting-contradicts" if case in CONTRADICTIONS else "setting-refused", named):
        apply_flag(config)
    assert OmegaConf.to_container(config, resolve=False) == before
