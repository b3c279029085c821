# SPDX-License-Identifier: Apache-2.0
"""``python -m fp16_patch.frameworks.openrlhf [KEY=VALUE ...] -- MODULE [ARGUMENT ...]``, by ``fp16-patch run``."""

import sys

from fp16_patch.frameworks.openrlhf.entry import main

if __name__ == "__main__":
    main(sys.argv[1:])
