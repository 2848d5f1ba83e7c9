"""Imported once by the server that the processes of the sweep are forked from."""

import logging

import torch

import tests.operators  # noqa: F401 - before anything imports torchvision

torch.set_num_threads(1)
import timm  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401 - most of what every model imports

import rezero.surgery.convert  # noqa: E402, F401
import tests.integration.hf_models  # noqa: E402, F401
import tests.integration.timm_models  # noqa: E402, F401

logging.getLogger("transformers").setLevel(logging.ERROR)
