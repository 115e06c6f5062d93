"""CamVid, 11 classes, 480x360."""

from __future__ import annotations

from degrid.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig


def camvid() -> RunConfig:
    """DeepLab v3+ on MobileNetV2 at output stride 16: 58.9 test mIoU in 20 minutes on 2 CPU cores (docs/results.md).

    Command: degrid train camvid --data CamVid --set model.pretrained=mobilenet_v2.pth
    """
    return RunConfig(
        name="camvid",
        model=ModelConfig(network="deeplabv3plus", encoder="timm:mobilenetv2_100", output_stride=16, channels=128),
        data=DataConfig(path="camvid", crop=(320, 320), scale=(0.5, 2.0), jitter=(0.3, 0.3, 0.3, 0.05)),
        optim=OptimConfig(name="adamw", lr=8e-4, head_factor=3.0, head_bias_factor=3.0, weight_decay=0.02, warmup=50),
        train=TrainConfig(steps=1050, batch_size=8, eval_every=250, ema=0.99, class_weights="sqrt_median_frequency"),
    )
