# SPDX-License-Identifier: Apache-2.0
"""The releases of DeepSpeed that every patch here was read against and run with."""

DISTRIBUTION = "deepspeed"
RELEASES = "==0.19.6"
