# SPDX-License-Identifier: Apache-2.0
"""Reward functions that trainers load by path."""
