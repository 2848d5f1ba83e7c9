"""What a causal language model of transformers says: asked here, and in a process that loads it from a folder.

``python -m tests.integration.answers PLAIN CONVERTED`` loads every folder in the folder PLAIN as someone would who has
never heard of rezero, and fails if that imported it. Then it loads every folder in CONVERTED with
`rezero.from_pretrained`. Beside each model it writes what it says.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import tests.operators  # noqa: F401 - before anything imports torchvision

PROMPT = torch.frombuffer(bytearray(b"The king is not the only man who "), dtype=torch.uint8).long()[None]
NEW_TOKENS = 24


def answers(model: Any) -> dict[str, Tensor]:
    """Return a model's logits for a prompt, and how it goes on: with a KV cache, with beams, and without a cache."""
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        return {
            "logits": model(PROMPT, use_cache=False).logits,
            "greedy": model.generate(PROMPT, use_cache=True, **options),
            "beams": model.generate(PROMPT, use_cache=True, num_beams=3, **options),
            "no cache": model.generate(PROMPT, use_cache=False, **options),
        }


def main(plain: Path, converted: Path) -> None:
    """Load every model, and write what it says, and which keys were too many or too few."""
    torch.set_num_threads(1)
    import transformers

    for folder in plain.iterdir():
        kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
        model, info = kind.from_pretrained(folder, dtype="auto", output_loading_info=True)
        (folder / "keys.json").write_text(json.dumps({name: sorted(keys) for name, keys in info.items()}))
        save_file(answers(model.eval()), folder / "answers.safetensors")
    if any(name.partition(".")[0] == "rezero" for name in sys.modules):
        raise SystemExit("rezero was imported")
    import rezero

    for folder in converted.iterdir():
        save_file(answers(rezero.from_pretrained(folder)), folder / "answers.safetensors")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
