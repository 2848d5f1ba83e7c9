"""Look into a network: is it alive, does the signal get through, what is being learned?"""

from rezero.diagnose.alpha_history import AlphaHistory
from rezero.diagnose.alphas import AlphaRecorder
from rezero.diagnose.check import check
from rezero.diagnose.density import Density
from rezero.diagnose.findings import Finding, Report
from rezero.diagnose.jacobian import Spectrum, jacobian_spectrum

__all__ = [  # noqa: RUF022 - grouped by the question they answer
    # is it alive?
    "check",
    "Report",
    "Finding",
    # does the signal get through?
    "jacobian_spectrum",
    "Spectrum",
    "Density",
    # what is being learned?
    "AlphaRecorder",
    "AlphaHistory",
]
