# SPDX-License-Identifier: Apache-2.0
"""Serve vLLM's own processes, for every framework that generates with vLLM."""
