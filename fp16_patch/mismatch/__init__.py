# SPDX-License-Identifier: Apache-2.0
"""How far the training policy pi and the rollout policy mu are apart. Knows torch, no RL framework."""
