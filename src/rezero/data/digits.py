"""scikit-learn's handwritten digits: real images that come with the package."""

import torch

from rezero.data.batches import TensorData

__all__ = ["load_digits"]

TRAINING_EXAMPLES = 1500


def load_digits() -> TensorData:
    """Load 1,797 handwritten digits of 8 x 8 pixels, 1,500 for training and 297 for validation.

    The split is a fixed shuffle. Pixels are standardised with one mean and one deviation, those of the training part.

    Returns:
        Inputs ``(N, 64)`` float32 and 10 classes.

    References:
        E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI, its test part.

    Example:
        >>> digits = load_digits()
        >>> digits.inputs.shape, digits.val_inputs.shape
        (torch.Size([1500, 64]), torch.Size([297, 64]))
    """
    from sklearn import datasets  # part of the lab extra, slow to import

    pixels, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    inputs = torch.as_tensor(pixels, dtype=torch.float32)[order]
    targets = torch.as_tensor(labels, dtype=torch.int64)[order]
    train = inputs[:TRAINING_EXAMPLES]
    inputs = (inputs - train.mean()) / train.std()
    n = TRAINING_EXAMPLES
    return TensorData("digits", inputs[:n], targets[:n], inputs[n:], targets[n:], classes=10)
