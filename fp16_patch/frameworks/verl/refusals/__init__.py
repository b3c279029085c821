# SPDX-License-Identifier: Apache-2.0
"""What the flag refuses beyond the table of settings: combinations, models, checkpoints and packages."""
