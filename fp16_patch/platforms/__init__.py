# SPDX-License-Identifier: Apache-2.0
"""Hardware that the frameworks do not support themselves.

A platform behaves the same in every precision, except for ``cpu/significand.py``: an instrument that rounds what the
rollout's linear layers compute with."""
