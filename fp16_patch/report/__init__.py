# SPDX-License-Identifier: Apache-2.0
"""Proof that the flag holds: every process's ledger, and the dtypes really in force. Knows no framework."""
