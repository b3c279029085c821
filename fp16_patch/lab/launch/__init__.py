# SPDX-License-Identifier: Apache-2.0
"""Start the arms of a recipe and watch over them."""
