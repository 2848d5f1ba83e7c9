"""Imported once by the server that the processes of the sweep are forked from."""

import torch

import tests.operators  # noqa: F401 - before anything imports torchvision

torch.set_num_threads(1)
import timm  # noqa: E402, F401
import transformers  # noqa: E402, F401

import rezero.surgery.convert  # noqa: E402, F401
