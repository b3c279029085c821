# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., Any]:
    """Return a maker of OpenRLHF's nested arguments. Those that the flag does not read are left out."""
    pytest.importorskip("openrlhf.utils.config", reason="OpenRLHF is not installed")
    from openrlhf.utils.config import hierarchize

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    defaults = {
        "actor.model_name_or_path": str(model),
        "actor.optim": "adam",
        "critic.optim": "adam",
        "ckpt.path": str(tmp_path / "ckpt"),
        "ds.param_dtype": "fp16",
        "ds.zero_stage": 2,
        "ds.load_in_4bit": False,
        "ds.tensor_parallel_size": 1,
        "ds.grad_accum_dtype": None,
        "ds.deepcompile": False,
        "ds.use_universal_ckpt": False,
        "ds.lora.rank": 0,
        "ds.adam_offload": False,
        "ds.ring_attn_size": 1,
        "actor.num_nodes": 1,
        "actor.num_gpus_per_node": 2,
        "train.batch_size": 32,
        "train.micro_batch_size": 4,
        "train.dynamic_batch_enable": False,
        "vllm.num_engines": 1,
        "vllm.enforce_eager": False,
        "rollout.top_p": 1.0,
        "rollout.temperature": 1.0,
        "algo.advantage.is_correction_level": "off",
        "train.async_enable": False,
        "train.partial_rollout_enable": False,
    }

    def made(**given: object) -> Any:
        changed = {key.replace("__", "."): value for key, value in given.items()}
        return hierarchize(SimpleNamespace(**{**defaults, **changed}))

    return made
