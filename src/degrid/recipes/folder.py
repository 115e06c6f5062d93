"""Your own folder of images and masks."""

from __future__ import annotations

from degrid.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig


def folder() -> RunConfig:
    """Defaults for a few hundred photographs on an ordinary computer.

    DeepLab v3+ on MobileNetV2 at output stride 16. Command: degrid train --data FOLDER
    """
    return RunConfig(
        name="folder",
        model=ModelConfig(network="deeplabv3plus", encoder="timm:mobilenetv2_100", output_stride=16),
        data=DataConfig(crop=(320, 320), scale=(0.5, 2.0), jitter=(0.3, 0.3, 0.3, 0.05)),
        optim=OptimConfig(lr=0.02, head_factor=5.0, head_bias_factor=5.0, warmup=50),
        train=TrainConfig(steps=2000, batch_size=8, eval_every=200, ema=0.99),
    )
