# SPDX-License-Identifier: Apache-2.0
"""Where an update overflowed, why, and what to do: one diagnosis for every engine."""
