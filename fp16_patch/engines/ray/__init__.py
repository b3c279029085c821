# SPDX-License-Identifier: Apache-2.0
"""Check nodes, collect actors' answers and pass the flag to workers, for every framework that runs on Ray."""
