# SPDX-License-Identifier: Apache-2.0
"""``python -m fp16_patch.cli``: the command ``fp16-patch``."""

import sys

from fp16_patch.cli import main

sys.exit(main())
