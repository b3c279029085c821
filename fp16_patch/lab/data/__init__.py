# SPDX-License-Identifier: Apache-2.0
"""Read, sample, score, select and write problems for RL.

``sanity`` builds the paper's sanity test for any model and dataset; ``convert`` only converts a dataset. Importing this
package loads none of torch, vLLM or datasets.
"""
