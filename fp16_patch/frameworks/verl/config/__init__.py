# SPDX-License-Identifier: Apache-2.0
"""The settings of verl's configuration that concern the flag: what it sets, and what it allows."""
