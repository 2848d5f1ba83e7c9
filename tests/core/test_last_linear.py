"""The end of a branch: one product where nobody looks on, and otherwise the modules as they are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rezero.branch import add_linear
from rezero.kernels import linear, mlp
from rezero.layers import TransformerEncoderLayer


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What an operation was taken for that a product ends, at any size."""
    taken: list[int] = []

    def counted(take: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def count(x: Tensor, *others: Tensor) -> Tensor:
            taken.append(x.numel())
            return take(x, *others)

        return count

    for operation in (linear._Product, mlp._Mlp):
        monkeypatch.setattr(operation, "apply", counted(operation.apply))
    monkeypatch.setattr(linear, "_LARGE", 0)
    monkeypatch.setattr(linear, "_FEW", 1)
    return taken


LOOKS: dict[str, tuple[Callable[[nn.Linear, nn.Dropout], object], int]] = {
    "nobody": (lambda _, __: None, 1),
    "evaluation with dropout": (lambda _, dropout: (setattr(dropout, "p", 0.5), dropout.eval()), 1),
    "dropout": (lambda _, dropout: setattr(dropout, "p", 0.5), 0),
    "a hook": (lambda layer, _: layer.register_forward_hook(lambda *_: None), 0),
    "a hook before": (lambda layer, _: layer.register_forward_pre_hook(lambda *_: None), 0),
    "a backward hook": (lambda layer, _: layer.register_full_backward_hook(lambda *_: None), 0),
    "a hook on dropout": (lambda _, dropout: dropout.register_forward_hook(lambda *_: None), 0),
    "a forward of its own": (lambda layer, _: setattr(layer, "forward", layer.forward), 0),
    "a parametrization": (lambda layer, _: nn.utils.parametrizations.weight_norm(layer), 0),
}


@pytest.mark.parametrize("look", LOOKS)
def test_one_product_where_nobody_looks_on(products: list[int], look: str) -> None:
    """Whatever could see or change what the modules return is obeyed: then both are called."""
    layer, dropout = nn.Linear(5, 4), nn.Dropout(0.0)
    change, expected = LOOKS[look]
    change(layer, dropout)
    x, h, alpha = torch.randn(6, 4), torch.randn(6, 5), torch.tensor([0.5])
    torch.manual_seed(1)
    y = add_linear(x, h, layer, dropout, alpha)
    assert len(products) == expected
    torch.manual_seed(1)
    torch.testing.assert_close(y, x + 0.5 * dropout(layer(h)))


def test_hooks_of_a_layer_see_what_they_always_saw(products: list[int]) -> None:
    """A hook on the attention or on its projection is called with the branch; the output stays as it is."""
    layer, x = TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, init_value=0.5), torch.randn(2, 3, 8)
    expected = layer(x)
    assert len(products) == 2
    for name in ("self_attn", "self_attn.out_proj", "linear2"):
        products.clear()
        seen: list[Tensor] = []
        hook = layer.get_submodule(name).register_forward_hook(lambda _, __, y, seen=seen: seen.append(y))
        torch.testing.assert_close(layer(x), expected)
        hook.remove()
        assert [each.shape for each in seen] == [x.shape]
        assert len(products) == 1


def test_a_hook_for_all_modules_is_called(products: list[int]) -> None:
    """As profilers set it."""
    layer, x = TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), torch.randn(2, 3, 8)
    seen: list[str] = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    layer(x)
    hook.remove()
    assert seen.count("Attention") == 1
    assert seen.count("Linear") == 3
    assert products == []
