# SPDX-License-Identifier: Apache-2.0
"""The releases of megatron-core whose optimizers this was written against and run with."""

DISTRIBUTION = "megatron-core"
RELEASES = "==0.16.1"
