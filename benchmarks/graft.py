"""What do blocks in a frozen model cost? Ours against the same block written in by hand, and against peers.

    python benchmarks/graft.py [--rounds 20] [--peers 1]

A Llama of 8 layers of width 256, frozen, with gated cross-attention to 32 vectors before every second layer, 4 rows of
128 tokens, float32: forward and backward of a training step. By hand: layer and block in a module that takes the
layer's place. Peers, with --peers 1 in an environment that has benchmarks/requirements.txt: the prompts of PEFT
(AdaptionPrompt, 32 vectors, the last 4 layers) on the same Llama, and torchtune's FusionLayer on its own decoder of the
same sizes; they are other blocks, so their step is held against their own base model.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import bytes_kept, interleave, peak_bytes, ratios, read_arguments, write_result
from torch import Tensor, nn

import rezero
from rezero.layers import GatedCrossAttention

WIDTH, DEPTH, HEADS, ROWS, LENGTH, MEDIA, VOCABULARY, EVERY = 256, 8, 4, 4, 128, 32, 1000, 2


class Written(nn.Module):
    """A layer with a block before it, as one writes it by hand."""

    def __init__(self, layer: nn.Module, block: nn.Module, context: Tensor) -> None:
        super().__init__()
        self.layer, self.block, self.context = layer, block, context

    def forward(self, x: Tensor, **options: Any) -> Any:
        """Run the block, then the layer."""
        return self.layer(self.block(x, self.context), **options)


class Logits(nn.Module):
    """A model that returns nothing but its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits."""
        output = self.model(ids)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits


def llama() -> Any:
    """Make the base model, frozen."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        use_cache=False,
    )
    return LlamaForCausalLM(config).requires_grad_(requires_grad=False)


def block(width: int) -> nn.Module:
    """Make the block of a layer."""
    return GatedCrossAttention(width, WIDTH, num_heads=HEADS)


def grafted(base: Any, context: Tensor, folder: Path) -> tuple[Any, int]:
    """Put the blocks in by `rezero.graft_`; return the model and the bytes that are saved."""
    graft = rezero.graft_(base, block, every=EVERY)
    graft.set_context(context)
    return base, graft.save(folder)


def written(base: Any, context: Tensor, folder: Path) -> tuple[Any, int]:
    """Put them in by hand."""
    layers = base.model.layers
    for place in range(EVERY - 1, DEPTH, EVERY):
        layers[place] = Written(layers[place], block(WIDTH), context)
    new = {name: each for name, each in base.named_parameters() if each.requires_grad}
    torch.save({name: each.detach() for name, each in new.items()}, folder / "new.pt")
    return base, (folder / "new.pt").stat().st_size


def prompted(base: Any, _: Tensor, folder: Path) -> tuple[Any, int]:
    """Put in PEFT's prompts."""
    from peft import AdaptionPromptConfig, get_peft_model

    config = AdaptionPromptConfig(adapter_len=MEDIA, adapter_layers=DEPTH // EVERY, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.save_pretrained(str(folder))
    return model, sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def torchtune_base() -> Any:
    """Make torchtune's decoder of the same sizes, frozen."""
    from torchtune.models.llama3 import llama3

    torch.manual_seed(0)
    sizes = {"num_heads": HEADS, "num_kv_heads": HEADS, "embed_dim": WIDTH, "intermediate_dim": 4 * WIDTH}
    model = llama3(vocab_size=VOCABULARY, num_layers=DEPTH, max_seq_len=LENGTH, **sizes)
    return model.requires_grad_(requires_grad=False)


def fused(base: Any, context: Tensor, folder: Path) -> tuple[Any, int]:
    """Put in torchtune's fusion layers."""
    from torchtune.models.llama3._component_builders import llama3_mlp
    from torchtune.modules import MultiHeadAttention, RMSNorm, TanhGate, TransformerCrossAttentionLayer
    from torchtune.modules.model_fusion import FusionLayer

    for place in range(EVERY - 1, DEPTH, EVERY):
        attention = MultiHeadAttention(
            embed_dim=WIDTH,
            num_heads=HEADS,
            num_kv_heads=HEADS,
            head_dim=WIDTH // HEADS,
            q_proj=nn.Linear(WIDTH, WIDTH, bias=False),
            k_proj=nn.Linear(WIDTH, WIDTH, bias=False),
            v_proj=nn.Linear(WIDTH, WIDTH, bias=False),
            output_proj=nn.Linear(WIDTH, WIDTH, bias=False),
            is_causal=False,
        )
        layer = TransformerCrossAttentionLayer(
            attn=attention,
            mlp=llama3_mlp(dim=WIDTH, hidden_dim=4 * WIDTH),
            ca_norm=RMSNorm(WIDTH),
            mlp_norm=RMSNorm(WIDTH),
            ca_scale=TanhGate(),
            mlp_scale=TanhGate(),
        )
        base.layers[place] = FusionLayer(base.layers[place], layer)
    new = {name: each.detach() for name, each in base.named_parameters() if each.requires_grad}
    torch.save(new, folder / "new.pt")
    plain = base.forward
    base.forward = lambda ids: plain(ids, encoder_input=context)
    return base, (folder / "new.pt").stat().st_size


def tell(
    name: str, make: Callable[..., tuple[Any, int]], base: Callable[[], Any], ids: Tensor, context: Tensor
) -> tuple[Any, dict[str, Any]]:
    """Put blocks in; return the model, and what that took and changed."""
    model = base()
    keys = set(model.state_dict())
    with torch.no_grad():
        before = Logits(model)(ids)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        changed, size = make(model, context, Path(folder))
        seconds = time.perf_counter() - start
    with torch.no_grad():
        after = Logits(changed)(ids)
    new = sum(each.numel() for each in changed.parameters() if each.requires_grad)
    row = {
        "seconds to put in and save": seconds,
        "bitwise equal at the start": torch.equal(before, after),
        "base keys changed": len(keys - set(changed.state_dict())),
        "new parameters": new,
        "saved bytes": size,
        "saved over the new tensors": size / (4 * new),
    }
    print(f"{name:22}", {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    return changed, row


def step_of(model: Any, ids: Tensor) -> Callable[[], None]:
    """Return forward and backward of a training step."""
    wrapped = Logits(model)

    def step() -> None:
        logits = wrapped(ids)
        nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()

    return step


def main(arguments: argparse.Namespace) -> None:
    """Measure all, print and write."""
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    context = torch.randn(ROWS, MEDIA, WIDTH, generator=torch.Generator().manual_seed(1))
    makers: dict[str, tuple[Callable[..., tuple[Any, int]], Callable[[], Any]]] = {
        "graft_": (grafted, llama),
        "by hand": (written, llama),
    }
    if arguments.peers:
        makers |= {"PEFT AdaptionPrompt": (prompted, llama), "torchtune FusionLayer": (fused, torchtune_base)}
    models, rows = {}, {}
    for name, (make, base) in makers.items():
        models[name], rows[name] = tell(name, make, base, ids, context)
        rows[name]["bytes kept"] = bytes_kept(Logits(models[name]), ids)
    hidden = {"base": llama()}
    if arguments.peers:
        hidden["torchtune's base"] = torchtune_base()
    for each in hidden.values():  # something has to learn for a backward pass
        next(each.parameters()).requires_grad_(requires_grad=True)
    steps = {name: step_of(model, ids) for name, model in (models | hidden).items()}
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    seconds = interleave(steps, rounds=arguments.rounds, device="cpu")
    timed = ratios(seconds, to="by hand")
    for name, row in timed.items():
        base_of = "torchtune's base" if "torchtune" in name else "base"
        row["over its base"] = ratios(seconds, to=base_of)[name]["ratio"]
        row |= {"peak bytes": peaks[name], "peak over by hand": peaks[name] / peaks["by hand"]}
        spread = f"{row['ratio']:.3f} ({row['q1']:.3f} to {row['q3']:.3f})"
        print(
            f"{name:22} {row['ms']:7.1f} ms, over by hand {spread}, over its base {row['over its base']:.3f}, "
            f"peak {row['peak bytes'] / 1e6:.1f} MB, {row['peak over by hand']:.3f}"
        )
    print(write_result("graft-cpu", {"put in": rows, "step": timed}, arguments.output))


if __name__ == "__main__":
    main(read_arguments(__doc__ or "", rounds=20, peers=(0, "1: also other packages, see `make peers`")))
