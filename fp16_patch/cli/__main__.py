# SPDX-License-Identifier: Apache-2.0
import sys

from fp16_patch.cli import main

sys.exit(main())
