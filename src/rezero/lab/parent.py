"""A process that does not outlive the one that started it, however that ends."""

import os
import threading
import time

__all__ = ["end_with"]

_EVERY = 0.5  # seconds between two looks


def end_with(parent: int) -> None:
    """End this process when its parent is gone.

    Args:
        parent: The parent's number.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
