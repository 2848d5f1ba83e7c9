"""Charts with one look."""

from rezero.charts.curves import curves
from rezero.charts.gates import gate_map
from rezero.charts.look import save

__all__ = ["curves", "gate_map", "save"]
