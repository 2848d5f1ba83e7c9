"""Two operators that torchvision's wheels want and only a CUDA build of torch has; timm and transformers import it."""

import torch

__all__ = ["LIBRARY"]

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
if torch.version.cuda is None:
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
