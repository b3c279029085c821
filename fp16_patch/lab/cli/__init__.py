# SPDX-License-Identifier: Apache-2.0
"""The lab's commands; they join ``fp16-patch`` through an entry point."""
