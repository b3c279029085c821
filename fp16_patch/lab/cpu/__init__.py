# SPDX-License-Identifier: Apache-2.0
"""Run stock verl or OpenRLHF, with vLLM, without a GPU: for development, continuous integration and the quickstart.

Off unless asked for: with ``VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=fp16_patch.lab.cpu.verl`` on verl, with
``FP16_PATCH_PLATFORM=cpu`` on OpenRLHF.
It replaces hardware and nothing else: it behaves the same whichever precision is chosen.
"""
