# SPDX-License-Identifier: Apache-2.0
"""Report every process's ledger and the dtypes in force, and check them against the flag. Imports no framework."""
