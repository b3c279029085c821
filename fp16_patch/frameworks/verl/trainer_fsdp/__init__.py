# SPDX-License-Identifier: Apache-2.0
"""verl's FSDP engine, FSDP1 and FSDP2: loss scaling, checkpoints, FP32 modules, precision rows."""
