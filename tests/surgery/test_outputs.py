"""Every tensor that a model returns is seen and compared, whatever it comes in."""

import dataclasses
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import rezero
from rezero.errors import UsageError
from rezero.surgery.outputs import same, tensors
from rezero.surgery.undisturbed import copied

D = 8
A, B = torch.ones(2), torch.zeros(3)


@dataclasses.dataclass
class Data:
    y: Tensor
    other: Any = None


@dataclasses.dataclass(slots=True)
class Slotted:
    y: Tensor
    other: Any = None


class Pair(NamedTuple):
    y: Tensor
    other: Any = None


class Listing(list[Any]):
    """A list of a class of its own."""


def cyclic() -> SimpleNamespace:
    each = SimpleNamespace(y=A, other=B)
    each.itself = each
    return each


CONTAINERS: dict[str, Any] = {
    "nested": [(A, {"b": B})],
    "data class": Data(A, B),
    "data class with slots": Slotted(A, [B]),
    "named tuple": Pair(A, B),
    "object": SimpleNamespace(y=A, other=SimpleNamespace(z=B)),
    "cycle": cyclic(),
    "list of a class": Listing([A, B]),
    "output of transformers": transformers.modeling_outputs.BaseModelOutput(A, (B,)),
    "cache": [transformers.DynamicCache([(A.view(1, 1, 2, 1), B.view(1, 1, 3, 1))])],
    "distribution": torch.distributions.Uniform(B[:2], A),
    "set": {A, B},
}


@pytest.mark.parametrize("output", CONTAINERS.values(), ids=CONTAINERS)
def test_both_tensors_are_found(output: Any) -> None:
    """Containers of torch, of Python and of others show their tensors."""
    assert len(tensors(output)) == 2


def test_other_things_show_none() -> None:
    """Numbers, text, classes, functions and modules are no tensors, and have none that were returned."""
    assert tensors([1, "a", None, nn.Linear, print, nn.Linear(2, 2), torch.float32, Data]) == []


def test_packed_and_nested_sequences_show_theirs() -> None:
    """A packed sequence shows its data, a nested tensor its parts."""
    assert any(each.equal(A) for each in tensors(pack_sequence([A])))
    nested = torch.nested.nested_tensor([A, B], layout=torch.jagged)
    assert [len(each) for each in tensors(nested)] == [2, 3]


class Changes(nn.Module):
    """``x + f(x)`` in a container; a gated layer makes another thing beside it wrong."""

    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.f, self.pack = nn.Linear(D, D), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(x + self.f(x), x if type(self.f) is nn.Linear else 2 * x)


@pytest.mark.parametrize(
    "pack",
    [Data, Slotted, Pair, lambda y, z: {"y": y, "z": [z]}, lambda y, z: SimpleNamespace(y=y, z=z)],
    ids=["data class", "slots", "named tuple", "dictionary", "object"],
)
def test_a_difference_shows_through_any_container(pack: Any) -> None:
    """A conversion that changes one of a model's outputs is refused, whatever holds it."""
    with pytest.raises(UsageError, match="output differs from the original's"):
        rezero.convert_(Changes(pack), torch.randn(3, D))


UNEQUAL = {
    "number": (A, 2 * A),
    "shape": (A, A[:1]),
    "dtype": (A, A.double()),
    "truth": (A.bool(), ~A.bool()),
    "integer": (A.long(), 2 * A.long()),
    "imaginary part": (torch.complex(A, A), torch.complex(A, 2 * A)),
    "nan": (A, A / 0 * 0),
}


@pytest.mark.parametrize(("one", "other"), UNEQUAL.values(), ids=UNEQUAL)
def test_unequal_tensors_are_told_apart(one: Tensor, other: Tensor) -> None:
    """Tensors of every kind are equal to themselves, not-a-number included, and not to others."""
    for exact in (True, False):
        assert not same([one], [other], exact=exact)
        assert same([one], [one.clone()], exact=exact)
        assert same([other], [other.clone()], exact=exact)
    assert not same([one], [one, one])
    assert not same([one], ValueError("failed"))


def test_rounding_is_allowed_on_demand_only() -> None:
    """A difference of a rounding error counts where equality is asked for."""
    assert same([A], [A + 1e-6])
    assert not same([A], [A + 1e-6], exact=True)


def test_copies_keep_what_was_one_tensor_one() -> None:
    """Copied arguments have memory of their own, and a tensor that was given twice is one tensor still."""
    given = (A, {"again": A}, Data(A), torch.ones(2, requires_grad=True) * 2)
    first, again, data, learning = copied(given)
    assert first is again["again"]
    assert first is data.y
    assert first is not A
    assert learning.requires_grad
    first.zero_()
    assert A.all()


class Overwrites(nn.Module):
    """Writes into the tensor that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.f(x.clone())
        x.mul_(0.5)
        return y


def test_a_model_that_writes_into_its_input_is_converted() -> None:
    """A model that changes its arguments is run on copies of the example each time, which stays what it was."""
    x = torch.randn(3, D)
    given = x.clone()
    assert rezero.convert_(Overwrites(), given).gates == ("f.alpha",)
    assert torch.equal(given, x)
