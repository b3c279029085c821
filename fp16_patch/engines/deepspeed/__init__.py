# SPDX-License-Identifier: Apache-2.0
"""Loss scaling of DeepSpeed's ZeRO engines: settings, repairs, checkpoints and diagnosis. Imports no framework."""
