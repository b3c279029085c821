# SPDX-License-Identifier: Apache-2.0
"""verl's FSDP engine, FSDP1 and FSDP2: its loss scale, its modules in FP32, its proof."""
