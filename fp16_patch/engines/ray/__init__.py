# SPDX-License-Identifier: Apache-2.0
"""What runs on Ray need, whichever framework starts them: nodes, answers of actors, a flag that reaches workers."""
