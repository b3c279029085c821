# SPDX-License-Identifier: Apache-2.0
"""Name the releases of DeepSpeed that the patches were written for and tested with."""

from __future__ import annotations

from fp16_patch.patching import Release

RELEASE = Release("deepspeed", "==0.19.6")
