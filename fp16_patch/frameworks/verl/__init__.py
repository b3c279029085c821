# SPDX-License-Identifier: Apache-2.0
"""The flag for verl. Follow the data:

``conf/`` and ``callback.py`` (the flag, in Hydra) -> ``config_rules.py`` and ``refusals.py`` (what it
sets, what it refuses) -> ``worker.py`` (imported by verl in every process) -> ``plan.py`` (which patches
where) -> ``trainer.py``, ``rollout.py``, ``weight_transfer.py`` (the patches) -> ``driver.py`` (collects
every process's ledger, stops the run, prints the precision report).
"""
