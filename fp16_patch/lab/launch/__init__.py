# SPDX-License-Identifier: Apache-2.0
"""Start the arms of a recipe and supervise them."""
