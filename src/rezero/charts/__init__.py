"""Charts with one look."""

from rezero.charts.arms import arrival_steps, rate_lines, seed_lines
from rezero.charts.curves import curves
from rezero.charts.gates import gate_lines, gate_map, gate_profile
from rezero.charts.intervals import intervals
from rezero.charts.look import save
from rezero.charts.spectra import density_line, histogram
from rezero.charts.story import story_panels

__all__ = [
    "arrival_steps",
    "curves",
    "density_line",
    "gate_lines",
    "gate_map",
    "gate_profile",
    "histogram",
    "intervals",
    "rate_lines",
    "save",
    "seed_lines",
    "story_panels",
]
