"""Real English text: Tiny Shakespeare where it is found, else what scikit-learn says of its data sets."""

from rezero.data.text import load_tiny_shakespeare, split_text
from rezero.data.windows import TextData
from rezero.errors import MissingDataError

__all__ = ["load_plain_text"]

_SETS = ("digits", "iris", "wine", "diabetes", "breast_cancer", "linnerud")


def load_plain_text(context: int) -> TextData:
    """Load a text of which the last tenth is for validation.

    Args:
        context: Length of a window (bytes).

    Returns:
        The text, which says its name.

    Raises:
        UsageError: If Tiny Shakespeare is there and damaged.
    """
    try:
        return load_tiny_shakespeare(context)
    except MissingDataError:
        return split_text("descriptions", _descriptions().encode(), context)


def _descriptions() -> str:
    from sklearn import datasets  # part of the lab extra, slow to import

    return "\n".join(getattr(datasets, f"load_{name}")().DESCR for name in _SETS)
