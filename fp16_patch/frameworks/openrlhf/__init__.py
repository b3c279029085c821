# SPDX-License-Identifier: Apache-2.0
"""OpenRLHF under the flag: ``fp16-patch run -- python -m openrlhf.cli.train_ppo_ray ... --ds.param_dtype fp16``.

Follow a run: ``entry`` (the driver) -> ``config`` and ``refusals`` -> ``worker`` (every process of Ray and vLLM) ->
``plan`` (which patches apply) -> ``rollout``, ``trainer``, ``ema`` -> ``controller`` -> ``reports``, ``mismatch``.
"""
