# SPDX-License-Identifier: Apache-2.0
"""verl's Megatron engine: what the flag sets and refuses there, its loss scale, its checkpoints, its proof."""
