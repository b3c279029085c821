# SPDX-License-Identifier: Apache-2.0
"""Read the logs and results of runs."""
