# SPDX-License-Identifier: Apache-2.0
"""Loss scaling and precision of torch's FSDP1 and FSDP2. Knows no framework above it."""
