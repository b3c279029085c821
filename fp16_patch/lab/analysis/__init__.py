# SPDX-License-Identifier: Apache-2.0
"""Numbers derived from the logs of runs."""
