# SPDX-License-Identifier: Apache-2.0
"""The flag as a Hydra config group."""
