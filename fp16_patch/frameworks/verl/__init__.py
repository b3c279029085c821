# SPDX-License-Identifier: Apache-2.0
"""verl under the flag ``+precision@_global_=fp16``.

In the order of a run: ``conf`` and ``entry`` (the flag, in Hydra), ``config`` and ``refusals`` (what it sets and what
it refuses), ``worker`` (imported by verl in every process), ``plan`` (which patches go where), ``trainer``,
``trainer_fsdp``, ``trainer_megatron``, ``mismatch``, ``rollout`` and ``receiver_failures`` (the patches), ``reports``
and ``controller`` (collect every process's ledger, stop the run, print the precision report).
"""
