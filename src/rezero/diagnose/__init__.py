"""Look into a network: is it alive, does the signal get through, what is being learned?"""

from rezero.diagnose.density import Density
from rezero.diagnose.jacobian import Spectrum, jacobian_spectrum

__all__ = ["Density", "Spectrum", "jacobian_spectrum"]
