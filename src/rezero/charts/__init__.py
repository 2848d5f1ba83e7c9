"""Charts with one look."""

from rezero.charts.curves import curves
from rezero.charts.gates import gate_lines, gate_map, gate_profile
from rezero.charts.look import save

__all__ = ["curves", "gate_lines", "gate_map", "gate_profile", "save"]
