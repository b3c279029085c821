# SPDX-License-Identifier: Apache-2.0
"""The releases of verl that every patch here was read against and run with."""

DISTRIBUTION = "verl"
RELEASES = "==0.9.1"
