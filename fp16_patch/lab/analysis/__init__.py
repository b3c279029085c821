# SPDX-License-Identifier: Apache-2.0
"""Analyse the curves and settings of runs."""
