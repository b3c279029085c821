# SPDX-License-Identifier: Apache-2.0
"""Register the patches in every process of a run: verl imports this module, because the flag names it.

``verl/__init__.py`` imports the modules of VERL_USE_EXTERNAL_MODULES and lets their errors through. So a node without
this package fails at ``import verl``, before training. Ray actors get the variable from the run's runtime environment.
vLLM's own processes inherit it, and import verl for its worker extension.
"""

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.plan import PLAN
from fp16_patch.patching import registry
from fp16_patch.precision import Precision

if Precision.from_environment() is None:
    raise Fp16PatchError(
        f"{__name__} was imported without {envs.PRECISION}",
        code="flag-not-propagated",
        next_step="do not set VERL_USE_EXTERNAL_MODULES yourself; use +precision@_global_=fp16",
    )
registry.register_import_hooks(PLAN)
