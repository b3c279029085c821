# SPDX-License-Identifier: Apache-2.0
"""Serve runs on Ray of any framework: check nodes, collect actors' answers, carry the flag to workers."""
