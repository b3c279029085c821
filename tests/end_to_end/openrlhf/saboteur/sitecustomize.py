# SPDX-License-Identifier: Apache-2.0
"""Python imports this in every process of a run whose PYTHONPATH names its folder: driver, Ray's, vLLM's own."""

import importlib
import os

if os.environ.get("SABOTAGE"):
    importlib.import_module("saboteur_of_openrlhf")
