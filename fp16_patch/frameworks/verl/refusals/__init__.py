# SPDX-License-Identifier: Apache-2.0
"""The configurations of verl that the flag refuses."""
