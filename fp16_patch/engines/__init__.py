# SPDX-License-Identifier: Apache-2.0
"""Compute libraries: each folder imports neither a framework nor another engine."""
