# SPDX-License-Identifier: Apache-2.0
"""The environment and the Hydra overrides of a verl run on this platform, in one place."""
