"""The built-in scenes: what `make demo` trains on."""

from __future__ import annotations

from degrid.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig


def synthetic() -> RunConfig:
    """DeepLab v3+ on a small ResNet at output stride 8, from scratch, in about two minutes on 2 CPU cores.

    Command: degrid train synthetic
    """
    return RunConfig(
        name="synthetic",
        model=ModelConfig(
            network="deeplabv3plus",
            encoder="timm:resnet10t",
            pretrained=False,
            output_stride=8,
            channels=64,
        ),
        data=DataConfig(path="synthetic", crop=(128, 128), scale=(0.8, 1.4)),
        optim=OptimConfig(name="adamw", lr=3e-3, head_factor=1.0, head_bias_factor=1.0, weight_decay=1e-2, warmup=20),
        train=TrainConfig(steps=300, batch_size=8, eval_every=100, ema=0.98, class_weights="sqrt_median_frequency"),
    )
