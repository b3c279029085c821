# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

# Models of recipes are hub ids; where there is no network the hub's client tries again and again to find one. To be set
# before anything imports it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
