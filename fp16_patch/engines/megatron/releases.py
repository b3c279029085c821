# SPDX-License-Identifier: Apache-2.0
"""Name the releases of megatron-core that this package was written for and tested with."""

DISTRIBUTION = "megatron-core"
RELEASES = "==0.16.1"
