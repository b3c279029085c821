# SPDX-License-Identifier: Apache-2.0
"""OpenRLHF under the flag: ``fp16-patch run -- python -m openrlhf.cli.train_ppo_ray ... --ds.param_dtype fp16``.

In the order of a run: ``entry`` (the driver), ``config`` and ``refusals``, ``worker`` (in every Ray process), ``plan``,
``trainer`` and ``rollout`` (the patches), ``reports`` and ``controller`` (precision report, metrics, weight sync).
"""
