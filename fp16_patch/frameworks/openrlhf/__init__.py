# SPDX-License-Identifier: Apache-2.0
"""OpenRLHF under the flag: ``fp16-patch run -- python -m openrlhf.cli.train_ppo_ray ... --ds.param_dtype fp16``.

Follow the data: ``start`` (the driver) -> ``flag`` and ``refusals`` -> ``worker`` (every Ray process) -> ``rollout``,
``trainer`` -> ``controller`` (proof, metrics, weight sync).
"""
