"""keras-hub: DeepLab v3 and v3+, which are recognised and refused."""

from __future__ import annotations

from degrid.checkpoints.systems.plan import Plan, System, Tensors
from degrid.types import ConversionError


class KerasHub(System):
    """Its files number the layers of a kind and drop their names (layers/conv2d_7/vars/0)."""

    title = "keras-hub: DeepLab v3, v3+"
    marks = (r"(layers/deep_lab_v3_backbone/)?layers/spatial_pyramid_pooling/.*/conv2d/vars/0",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`.

        Raises:
            ConversionError: always.
        """
        raise ConversionError(
            "keras-hub's DeepLab cannot be converted: its files number the layers and drop their names, and which "
            "is which in its head is not known; export the model with Keras, or train again"
        )
