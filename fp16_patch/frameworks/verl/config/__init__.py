# SPDX-License-Identifier: Apache-2.0
"""The keys of verl's configuration that the flag sets."""
