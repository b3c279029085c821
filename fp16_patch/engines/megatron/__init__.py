# SPDX-License-Identifier: Apache-2.0
"""Loss scaling of megatron-core's optimizers. Imports no framework and patches nothing.

Megatron's optimizers take any grad scaler; this package gives them its own::

    config = OptimizerConfig(fp16=True, **optimizer_config(settings), ...)  # Megatron then prints the true settings
    optimizer = get_megatron_optimizer(config, model)
    scaler.install_loss_scaler(optimizer, settings, model)  # once, before a checkpoint is loaded; may raise
    print(checkpoint.resumption(optimizer, folder))  # after every load, also one without an optimizer section

    run()  # forward and backward of all micro-batches of one update, by Megatron's schedules
    update = step.take_step(optimizer)  # replaces optimizer.step(); the same on every rank
    replay.stop_after_too_many(optimizer, update, run)
    metrics = describe(update, sub_optimizers.get_loss_scaler(optimizer).counts)
"""
