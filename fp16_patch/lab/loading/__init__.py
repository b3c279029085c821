# SPDX-License-Identifier: Apache-2.0
"""Find, read and validate recipes."""
