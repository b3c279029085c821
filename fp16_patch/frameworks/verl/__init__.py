# SPDX-License-Identifier: Apache-2.0
"""The flag for verl. Follow the data:

``conf/`` and ``callback.py`` (the flag, in Hydra) -> ``config_rules.py`` and ``refusals.py`` (what it
sets, what it refuses) -> ``worker.py`` (imported by verl in every process) -> ``plan.py`` (which patches
where) -> ``fsdp/`` or ``megatron/`` with ``updates.py``, ``rollout.py``, ``weight_transfer.py`` (the patches)
-> ``collect.py`` and ``driver.py`` (collect every process's ledger, stop the run, print the precision report).
"""
