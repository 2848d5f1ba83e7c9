"""What an offline run of Weights & Biases wrote."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record


def records_of(run: Path) -> Iterator[Record]:
    """Read the file of a run's folder: after 7 bytes, records in LevelDB's log format."""
    (file,) = run.glob("run-*.wandb")
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 < len(data):
        if (rest := -place % 32768) < 7:  # the end of a block, too short for a header
            place += rest
        _, size, kind = struct.unpack_from("<IHB", data, place)
        record = (record if kind in (3, 4) else b"") + data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            yield Record.FromString(record)


def steps_of(run: Path) -> list[dict[str, Any]]:
    """Read what was logged, a step each."""
    histories = [record.history.item for record in records_of(run) if record.history.item]
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items} for items in histories
    ]
