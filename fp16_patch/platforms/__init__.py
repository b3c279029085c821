# SPDX-License-Identifier: Apache-2.0
"""Hardware the frameworks do not run on by themselves. Nothing here knows about precision."""
