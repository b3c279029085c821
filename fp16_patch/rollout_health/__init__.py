# SPDX-License-Identifier: Apache-2.0
"""Watch the rollout engine: log-probs and logits that are not finite, and sampling that changes the distribution.

The loss scaler watches the engine that learns. This package watches the engine that samples. It needs torch, and no
RL framework.
"""
