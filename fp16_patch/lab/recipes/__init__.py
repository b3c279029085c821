# SPDX-License-Identifier: Apache-2.0
"""Recipes: one comparison of the paper as a YAML file."""
