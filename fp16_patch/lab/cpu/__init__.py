# SPDX-License-Identifier: Apache-2.0
"""Run stock verl or OpenRLHF, with vLLM, without a GPU: for development, continuous integration and the quickstart.

Off by default. Turn it on with ``VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=fp16_patch.lab.cpu.verl`` for verl, or
``FP16_PATCH_PLATFORM=cpu`` for OpenRLHF. It replaces hardware only, and behaves the same in every precision.
"""
