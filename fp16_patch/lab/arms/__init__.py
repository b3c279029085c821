# SPDX-License-Identifier: Apache-2.0
"""One arm of an experiment as data: its command, files, settings, status, and what it needs."""
