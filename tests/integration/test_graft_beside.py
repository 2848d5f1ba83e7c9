"""Grafted blocks beside what others do to a model: LoRA, quantized weights, checkpointed layers, replicas."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rezero
from rezero.layers import GatedAdapter, GatedCrossAttention
from tests.integration.architectures import ARCHITECTURES

MEDIA = 12

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


def llama() -> Any:
    """Make a small Llama."""
    torch.manual_seed(0)
    return ARCHITECTURES["llama"].build()


def text() -> Tensor:
    """Return tokens, ``(2, 7)``."""
    ids: Tensor = ARCHITECTURES["llama"].inputs()["input_ids"]
    return ids


def media() -> Tensor:
    """Return a context, ``(2, 3, 12)``."""
    return torch.randn(2, 3, MEDIA, generator=torch.Generator().manual_seed(1))


def block(width: int) -> nn.Module:
    """Make the block of a layer."""
    return GatedCrossAttention(width, MEDIA, num_heads=2, ff_mult=1)


def learn(model: Any, graft: rezero.Graft, steps: int = 3) -> None:
    """Train what learns."""
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        with graft.condition(media()):
            model(text(), labels=text()).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("first", ["lora", "graft"])
def test_lora_and_a_graft_learn_together(first: str) -> None:
    """Whichever comes first: both move, the base does not, and each is taken out by itself."""
    peft = pytest.importorskip("peft")
    model = llama().eval()
    before, expected = copy.deepcopy(model.state_dict()), model(text()).logits
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=[])
    if first == "lora":
        tuned = peft.get_peft_model(model, config)
        graft = rezero.graft_(model, block, freeze=False)
    else:
        graft = rezero.graft_(model, block)
        tuned = peft.get_peft_model(model, config)
        for parameter in graft.parameters():
            parameter.requires_grad_(True)  # PEFT freezes all that is not its own
    learn(tuned, graft)
    after = {key.replace("base_layer.", ""): value for key, value in model.state_dict().items()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(value.any() for key, value in after.items() if "lora_B" in key)
    assert all(gate.gate_parameter.item() for gate in rezero.gates(model).values())
    with graft.disable(), tuned.disable_adapter():
        torch.testing.assert_close(tuned(text()).logits, expected, rtol=0, atol=0)
    graft.remove()
    with tuned.disable_adapter():
        torch.testing.assert_close(tuned(text()).logits, expected, rtol=0, atol=0)


class Int8Linear(nn.Module):
    """A frozen linear map whose weights are whole numbers and a scale a row, as quantized bases have them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with the weights in full."""
        return x @ (self.weight.to(x.dtype) * self.get_buffer("scale")).mT


def quantized() -> Any:
    """Make a Llama whose layers are quantized."""
    model = llama()
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    return model.eval()


def test_a_quantized_base_takes_blocks_and_what_was_saved_from_a_full_one(tmp_path: Path) -> None:
    """It starts bitwise, learns through the quantized layers, and loads a graft of the same base unquantized."""
    model = quantized()
    expected, before = model(text()).logits, copy.deepcopy(model.state_dict())
    graft = rezero.graft_(model, block)
    with graft.condition(media()):
        assert torch.equal(model(text()).logits, expected)
    learn(model, graft)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert all(gate.gate_parameter.item() for gate in rezero.gates(model).values())
    full = llama()
    rezero.graft_(full, block).save(tmp_path)
    assert rezero.load_graft_(quantized(), tmp_path).sites == graft.sites


def test_blocks_take_the_dtype_of_their_layers() -> None:
    """In a bfloat16 model they are bfloat16, their gates float32, and the start is bitwise the base model's."""
    model = llama().bfloat16().eval()
    expected = model(text()).logits
    graft = rezero.graft_(model, block)
    kinds = {name.endswith("alpha"): each.dtype for name, each in graft.named_parameters()}
    assert kinds == {False: torch.bfloat16, True: torch.float32}
    with graft.condition(media().bfloat16()):
        assert torch.equal(model(text()).logits, expected)
    with (
        pytest.raises(ValueError, match=r"context.*float32.*bfloat16|context.*bfloat16.*float32"),
        graft.condition(media()),
    ):
        model(text())


@pytest.mark.parametrize("reentrant", [False, True], ids=["new", "reentrant"])
def test_checkpointed_layers_of_transformers_learn_the_same(*, reentrant: bool) -> None:
    """gradient_checkpointing_enable() changes no gradient, even where backward runs outside of the condition."""
    gradients = []
    for checkpointed in (False, True):
        model = llama().train()
        torch.manual_seed(1)
        graft = rezero.graft_(model, block, every=2)
        for gate in rezero.gates(model).values():
            nn.init.constant_(gate.gate_parameter, 0.3)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with graft.condition(media()):
            loss = model(text(), labels=text(), use_cache=False).loss
        loss.backward()
        gradients.append({name: each.grad for name, each in graft.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_two_processes_replicate_a_grafted_model(tmp_path: Path) -> None:
    """Under DDP both have the same gates after steps on different rows, those of one process with all rows."""
    torch.multiprocessing.start_processes(replicate, (str(tmp_path),), nprocs=2, start_method="fork")
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    model, graft = small()
    optimizer = torch.optim.SGD(graft.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        with graft.condition(media()):
            loss = model(rows()).square().mean()
        loss.backward()
        optimizer.step()
    for name, parameter in graft.named_parameters():
        torch.testing.assert_close(one[name], parameter.detach())


def rows() -> Tensor:
    """Return hidden states, ``(2, 5, 8)``."""
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))


def small() -> tuple[nn.Module, rezero.Graft]:
    """Make a small encoder with open blocks."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    graft = rezero.graft_(model, block)
    for gate in rezero.gates(model).values():
        nn.init.constant_(gate.gate_parameter, 0.5)
    return model, graft


def replicate(rank: int, folder: str) -> None:
    """Train a replica on one row."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        model, graft = small()
        replica = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(graft.parameters(), lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            with graft.condition(media()[rank : rank + 1]):
                replica(rows()[rank : rank + 1]).square().mean().backward()
            optimizer.step()
        torch.save({name: each.detach() for name, each in graft.named_parameters()}, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def test_an_adapter_merges_beside_lora_free_linears() -> None:
    """Linear adapters parallel to every projection of a Llama go into its weights, to rounding."""
    model = llama().eval()
    keys = list(model.state_dict())
    graft = rezero.graft_(
        model,
        lambda width: GatedAdapter(width, 4, activation=None, norm=False),
        at="model.layers.*.self_attn.q_proj",
        position="parallel",
        width=32,
    )
    for gate in rezero.gates(model).values():
        nn.init.constant_(gate.gate_parameter, 0.3)
    with torch.no_grad():
        expected = model(text()).logits
        graft.merge()
        torch.testing.assert_close(model(text()).logits, expected, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == keys
