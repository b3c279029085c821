# SPDX-License-Identifier: Apache-2.0
"""Problems for RL: read, sampled, judged, chosen, and written in the layouts that the frameworks read.

``sanity`` builds the paper's sanity test for any model and dataset, ``convert`` only converts. Importing this loads
none of torch, vLLM or datasets.
"""
