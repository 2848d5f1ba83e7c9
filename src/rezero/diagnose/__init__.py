"""Look into a network: is it alive, does the signal get through, what is being learned?"""

from rezero.diagnose.alpha_history import AlphaHistory
from rezero.diagnose.alphas import AlphaRecorder
from rezero.diagnose.check import check
from rezero.diagnose.density import Density
from rezero.diagnose.depth_check import DepthCheck, depth_check
from rezero.diagnose.depth_trial import Measurement
from rezero.diagnose.depth_verdict import Verdict
from rezero.diagnose.findings import Finding, Report
from rezero.diagnose.jacobian import Spectrum, jacobian_spectrum
from rezero.diagnose.mean_field import MeanField, relu_mean_field
from rezero.diagnose.propagation import Propagation, Signal, propagation

__all__ = [  # noqa: RUF022 - grouped by the question they answer
    # is it alive?
    "check",
    "Report",
    "Finding",
    # does the signal get through?
    "jacobian_spectrum",
    "Spectrum",
    "Density",
    "propagation",
    "Propagation",
    "Signal",
    "relu_mean_field",
    "MeanField",
    # what is being learned?
    "AlphaRecorder",
    "AlphaHistory",
    # does a rule hold over depth?
    "depth_check",
    "DepthCheck",
    "Measurement",
    "Verdict",
]
