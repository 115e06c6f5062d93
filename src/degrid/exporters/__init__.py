"""Models for other runtimes; each export is run and compared before it counts."""

from degrid.exporters.check import Comparison
from degrid.exporters.export import Quantization, export_model
from degrid.exporters.formats import FORMATS, QUANTIZERS
from degrid.exporters.runtime import ENDINGS, ExportedModel

__all__ = ["ENDINGS", "FORMATS", "QUANTIZERS", "Comparison", "ExportedModel", "Quantization", "export_model"]
