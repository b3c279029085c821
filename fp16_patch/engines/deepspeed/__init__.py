# SPDX-License-Identifier: Apache-2.0
"""Loss scaling of DeepSpeed's ZeRO engines: settings, repairs, checkpoints, diagnosis. Knows no framework above it."""
