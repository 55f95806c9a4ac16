"""Label formats: detection by content, readers into a common form, and writers."""

from mtl_jax.data.formats.convert import Converted, convert
from mtl_jax.data.formats.records import LABELS, Dataset, Record, Shape
from mtl_jax.data.formats.table import FORMATS, detect, read

__all__ = ["FORMATS", "LABELS", "Converted", "Dataset", "Record", "Shape", "convert", "detect", "read"]
