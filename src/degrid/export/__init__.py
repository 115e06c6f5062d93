"""Models for other runtimes; each export is run and compared before it counts."""

from degrid.export.check import Comparison
from degrid.export.export import Quantization, export_model
from degrid.export.formats import FORMATS, QUANTIZERS
from degrid.export.runtime import ENDINGS, ExportedModel

__all__ = ["ENDINGS", "FORMATS", "QUANTIZERS", "Comparison", "ExportedModel", "Quantization", "export_model"]
