# SPDX-License-Identifier: Apache-2.0
"""Imported by verl in every process of a run, because the flag names it in VERL_USE_EXTERNAL_MODULES.

``verl/__init__.py`` imports the modules of that variable and lets their errors through: a node without
this package fails at ``import verl``, before training. Ray actors get the variable from the run's
runtime environment; vLLM's own processes inherit it and import verl for its worker extension.
"""

from fp16_patch.frameworks.verl.plan import activate

activate()
