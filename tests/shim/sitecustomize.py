"""Python imports this at its start where this folder is on PYTHONPATH: processes that import torchvision need it."""

import importlib.util
import sys
from pathlib import Path

if "tests.operators" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("rezero_operators", Path(__file__).parents[1] / "operators.py")
    _operators = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_operators)
