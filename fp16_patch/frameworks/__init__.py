# SPDX-License-Identifier: Apache-2.0
"""The frameworks that drive RL training: verl and OpenRLHF."""
