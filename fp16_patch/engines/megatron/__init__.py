# SPDX-License-Identifier: Apache-2.0
"""Loss scaling of megatron-core's optimizers. Knows no framework above it, and patches nothing: Megatron's optimizers
take any grad scaler, and get this package's.

::

    config = OptimizerConfig(fp16=True, **optimizer_config(settings), ...)  # so that what Megatron prints is true
    optimizer = get_megatron_optimizer(config, model)
    scaling.govern(optimizer, settings, model)      # once, before a checkpoint is loaded; or one error
    print(checkpoint.resumption(optimizer, folder)) # after every load, also one without an optimizer section

    losses = overflow.run_pass(optimizer, run)      # run(): all micro-batches of one update, by Megatron's schedules
    update = step.take_step(optimizer)              # in place of optimizer.step(); the same on every rank
    overflow.stop_after_too_many(optimizer, update, run)
    metrics = describe(update, scaling.governor_of(optimizer).counts)
"""
