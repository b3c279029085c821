# SPDX-License-Identifier: Apache-2.0
"""What vLLM's own processes need, shared by every framework that generates with vLLM."""
