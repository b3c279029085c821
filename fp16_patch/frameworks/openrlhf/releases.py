# SPDX-License-Identifier: Apache-2.0
"""The releases of OpenRLHF that the patches were written for and tested with."""

DISTRIBUTION = "openrlhf"
RELEASES = "==0.11.2"
