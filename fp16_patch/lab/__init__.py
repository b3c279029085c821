# SPDX-License-Identifier: Apache-2.0
"""Experiments: recipes, comparison reports, data, toy policy, the CPU platform. A training image needs none of it."""
