# SPDX-License-Identifier: Apache-2.0
"""Name every environment variable of this package. Ray carries those of a run into its processes."""

PRECISION = "FP16_PATCH"
"""Set by the flag: the precision and its settings, as JSON. Unset: the flag is off in this process."""

REPORTS = "FP16_PATCH_REPORTS"
"""Set by the flag: the folder of precision reports, overflow reports and log-probs. Default: the current directory."""

COUNT_LOGITS = "FP16_PATCH_COUNT_LOGITS"
"""Set by the flag: `1` in a run that asks vLLM for no log-probs: vLLM's workers count logits not finite. Else `0`."""

RUN_RECORD = "FP16_PATCH_RUN_RECORD"
"""Set by `fp16-patch run`: the driver's host and pid, the changed settings and the report's path, as JSON."""

SETUP = "FP16_PATCH_SETUP"
"""Set by `fp16-patch run`: the function `package.module.function` that Ray workers and vLLM processes call first."""

CARRIED = "FP16_PATCH_CARRIED"
"""Set by `fp16-patch run`: the comma-separated names of the variables that Ray carries to the workers."""

NEXT_RUNTIME_ENV_HOOK = "FP16_PATCH_NEXT_RUNTIME_ENV_HOOK"
"""Set by `fp16-patch run`: the user's own `RAY_RUNTIME_ENV_HOOK`, which is called before ours."""

METRICS = "FP16_PATCH_METRICS"
"""Set by the user or a recipe (OpenRLHF): a file that gets a JSON line a step, `{"step": 1, "data": {...}}`."""

PLATFORM = "FP16_PATCH_PLATFORM"
"""Set by the user or a recipe: the hardware platform to activate. `cpu` runs OpenRLHF without a GPU."""

ROLLOUT_SIGNIFICAND = "FP16_PATCH_ROLLOUT_SIGNIFICAND"
"""Set by the user or a recipe: explicit significand bits, 1 to 10, of vLLM's linear outputs (an experiment)."""

RECIPE_RUN = "FP16_PATCH_RUN"
"""Set by `fp16-patch recipes run`: marks every process of an arm, so that leftovers are found and terminated."""
