"""What is found in a model: the sites, what is left out and why, and that the model stays as it was."""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

import rezero
from rezero import ReZero
from rezero.errors import UsageError
from rezero.surgery.find import find_residuals
from rezero.surgery.sites import Residuals
from tests.surgery import models
from tests.surgery.models import WIDTH, PreNorm, Residual, linear

X = torch.linspace(-1, 1, 2 * 3 * WIDTH).reshape(2, 3, WIDTH)
IMAGE = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)
MOVED = "no parameters between skip and branch"
NO_MODULE = "no module returns the branch"
STREAM = "both sides are streams of their own: what is added is no branch"
UNREAD = "the sum does not reach the outputs, or only as whole numbers or detached: no gate could learn there"
ELSEWHERE = "the branch is used elsewhere too"


@dataclass(frozen=True)
class Fact:
    """What is to be known of a site: its branches as leaf, leaves and scale; the rest as in `Site`."""

    name: str
    branches: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]
    pre_norms: tuple[str, ...] = ()
    post_norm: str | None = None
    activation_after: str | None = None
    kind: str = "identity"


def fact(name: str, leaf: str, leaves: str = "", *, scale: str = "", norms: str = "", **rest: Any) -> Fact:
    """Write a fact with one branch, names apart by spaces."""
    return Fact(name, ((leaf, tuple((leaves or leaf).split()), tuple(scale.split())),), tuple(norms.split()), **rest)


def facts(found: Residuals) -> list[Fact]:
    return [
        Fact(
            site.name,
            tuple((branch.leaf, branch.leaves, branch.scale) for branch in site.branches),
            site.pre_norms,
            site.post_norm,
            site.activation_after,
            site.kind,
        )
        for site in found
    ]


def left_out(found: Residuals) -> list[tuple[str, str, bool]]:
    return [(each.name, each.reason, each.refused) for each in found.left_out]


# One site, exactly


BASIC = "conv1 bn1 conv2 bn2"


@pytest.mark.parametrize(
    ("model", "x", "expected"),
    [
        pytest.param(PreNorm(), X, [fact("", "fc2", "norm fc1 fc2", norms="norm")], id="identity"),
        pytest.param(models.PostNorm(), X, [fact("", "fc", post_norm="norm")], id="post-norm"),
        pytest.param(
            models.Sandwich(), X, [fact("", "after", "before fc after", norms="before")], id="sandwich-norm"
        ),
        pytest.param(
            models.FinalNorm(),
            X,
            [
                fact(f"blocks.{i}", f"blocks.{i}.fc2", " ".join(f"blocks.{i}.{n}" for n in ("norm", "fc1", "fc2")),
                     norms=f"blocks.{i}.norm")
                for i in range(2)
            ],
            id="final-norm",
        ),
        pytest.param(
            models.FlatFinalNorm(),
            X,
            [fact("", "fc1", "norm1 fc1", norms="norm1"), fact("", "fc2", "norm2 fc2", norms="norm2")],
            id="final-norm-in-one-forward",
        ),
        pytest.param(
            models.BasicBlock("none"), IMAGE, [fact("", "bn2", BASIC, activation_after="relu")], id="basic-block"
        ),
        pytest.param(
            models.BasicBlock("A"), IMAGE, [fact("", "bn2", BASIC, activation_after="relu")], id="padded-shortcut"
        ),
        pytest.param(
            models.BasicBlock("B"),
            IMAGE,
            [fact("", "bn2", BASIC, activation_after="relu", kind="projection")],
            id="projection-shortcut",
        ),
        pytest.param(
            models.PoolProjection(), X, [fact("", "fc2", "fc1 fc2", kind="projection")], id="max-pooled-projection"
        ),
        pytest.param(
            models.TupleLayer(models.Attention(weights=True)),
            X,
            [fact("", "attn.out", "norm attn.qkv attn.out", norms="norm")],
            id="tuple",
        ),
        pytest.param(
            models.TupleLayer(models.FunctionalAttention()),
            X,
            [fact("", "attn", "norm attn", norms="norm")],
            id="tuple-of-a-function",
        ),
        pytest.param(Residual(linear(), nn.ReLU()), X, [fact("", "branch.1", "branch.0")], id="activation-at-the-end"),
        pytest.param(
            models.InlineLayerScale(), X, [fact("", "fc", scale="gamma")], id="layer-scale-inline"
        ),
        pytest.param(models.OwnParameter(), X, [fact("", "fc2", "fc1 fc2")], id="own-parameter-elsewhere"),
        pytest.param(
            Residual(linear(), models.LayerScale()),
            X,
            [fact("", "branch.1", "branch.0 branch.1", scale="branch.1.gamma")],
            id="layer-scale-module",
        ),
        pytest.param(
            models.AddsByModule(), X, [fact("add", "fc1"), fact("add", "fc2")], id="added-by-one-module-twice"
        ),
        pytest.param(
            models.SharedWithin(),
            X,
            [fact("", "out1", "fc out1"), fact("", "out2", "fc out2")],
            id="shared-inside-the-branches",
        ),
        pytest.param(
            models.Mixture(),
            X,
            [fact("", "moe", "norm moe.router moe.experts.0 moe.experts.1 moe.experts.2", norms="norm")],
            id="mixture-of-experts",
        ),
    ],
)  # fmt: skip
def test_site(model: nn.Module, x: Tensor, expected: list[Fact]) -> None:
    """A site has exactly the names, branches, norms, activation and kind that its model was written with."""
    found = find_residuals(model.eval(), x)
    if isinstance(model, models.Mixture):  # which experts are used, and in which order, the numbers decide
        chosen = facts(found)[0].branches[0][1]
        assert chosen[:2] == ("norm", "moe.router")
        assert len(chosen) > 2
        assert set(chosen) <= set(expected[0].branches[0][1])
        expected = [fact("", "moe", " ".join(chosen), norms="norm")]
    assert facts(found) == expected
    assert not any(each.refused for each in found.left_out)


@pytest.mark.parametrize(
    "how",
    [
        "plain",
        "x += f",
        "f += x",
        "add_",
        "torch.add",
        "minus",
        "dropout module",
        "dropout function",
        "half",
        "scaled",
        "drop path",
        "reshaped",
        "cast",
        "class token",
        "sum",
    ],
)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_ways_to_add(how: str, *, training: bool) -> None:
    """However a branch is added, dropped, scaled or reshaped on its way, the layer that ends it is found."""
    assert facts(find_residuals(models.Simple(how).train(training), X)) == [fact("", "fc")]


@pytest.mark.parametrize(
    "order", ["skip first", "skip last", "skip outside", "skip between", "in place", "stack and sum"]
)
def test_parallel_branches(order: str) -> None:
    """Attention and MLP beside each other are one site of two branches, in any order of the additions."""
    found = find_residuals(nn.Sequential(linear(), models.Parallel(order)), X)
    branches = (
        ("1.attn.out", ("1.norm1", "1.attn.qkv", "1.attn.out"), ()),
        ("1.mlp.1", ("1.norm2", "1.mlp.0"), ()),
    )
    assert facts(found) == [Fact("1", branches, ("1.norm1", "1.norm2"), kind="parallel")]
    assert left_out(found) == []


def test_multihead_attention_is_gated_as_a_whole() -> None:
    """``nn.MultiheadAttention`` never calls its output projection, so it is itself the leaf."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, norm_first=True, activation="gelu")
    found = find_residuals(layer.eval(), X)
    assert [(branch.leaf, site.pre_norms) for site in found for branch in site.branches] == [
        ("self_attn", ("norm1",)),
        ("linear2", ("norm2",)),
    ]


def test_post_norm_encoder_layer() -> None:
    """PyTorch's post-norm layer has its two norms after the additions."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    assert [(site.pre_norms, site.post_norm) for site in find_residuals(layer.eval(), X)] == [
        ((), "norm1"),
        ((), "norm2"),
    ]


def test_activation_function_after() -> None:
    """An activation that is no module is given in brackets."""

    class Activated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = linear()

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.fc(x))

    assert facts(find_residuals(Activated(), X)) == [fact("", "fc", activation_after="(relu)")]


def test_keyword_arguments() -> None:
    """Arguments may be given by name, and a mask that is added is no residual."""
    inputs = {"states": X, "mask": torch.zeros(3, 3)}
    found = find_residuals(models.Keywords(), kwargs=inputs)
    assert [site.name for site in found] == ["layers.0", "layers.1"]
    assert [branch.leaf for branch in found.branches] == ["layers.0.attn.out", "layers.1.attn.out"]
    assert {each.reason for each in found.left_out} == {"neither side is a skip of the other"}


def test_nested_residuals() -> None:
    """A residual block inside a branch is a site beside the outer one, in the order of the additions."""
    model = Residual(linear(), Residual(linear()), linear())
    assert facts(find_residuals(model, X)) == [
        fact("branch.1", "branch.1.branch.0"),
        fact("", "branch.2", "branch.0 branch.1.branch.0 branch.2"),
    ]


def test_residual_block_in_the_middle_of_a_branch() -> None:
    """A block in the middle of a branch, at the same resolution, does not make the outer skip a long one."""

    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.attn, self.fc2 = linear(), Residual(linear()), linear()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc2(self.attn(self.fc1(x)))

    assert facts(find_residuals(nn.Sequential(Bottleneck(), Bottleneck()), X)) == [
        each
        for i in range(2)
        for each in (
            fact(f"{i}.attn", f"{i}.attn.branch.0"),
            fact(f"{i}", f"{i}.fc2", f"{i}.fc1 {i}.attn.branch.0 {i}.fc2"),
        )
    ]


def test_gate_at_another_resolution_inside_a_branch() -> None:
    """A branch that weighs its numbers by a coarser map of them, as in GhostNetV2, is no long skip."""

    class Ghost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            gate = torch.sigmoid(self.gate(nn.functional.avg_pool2d(x, 2)))
            return self.conv(x) * nn.functional.interpolate(gate, size=x.shape[-2:])

    class Bottle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ghost, self.out = Ghost(), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.out(self.ghost(x))

    assert facts(find_residuals(Bottle(), IMAGE)) == [fact("", "out", "ghost.gate ghost.conv out")]


def test_branch_that_ends_in_a_residual_block() -> None:
    """A branch that a residual block ends is gated at that block."""
    model = Residual(linear(), Residual(linear()))
    assert facts(find_residuals(model, X)) == [
        fact("branch.1", "branch.1.branch.0"),
        fact("", "branch.1", "branch.0 branch.1.branch.0"),
    ]


def test_names_of_sites_carry_shape_and_place() -> None:
    """A branch knows the shape of its leaf, and a site where it is added: the call, the addition, the operand."""
    (first, second) = find_residuals(models.AddsByModule(), X)
    assert first.branches[0].shape == (2, 3, WIDTH)
    assert (first.added, second.added) == (((0, 0, 1),), ((1, 0, 1),))
    (site,) = find_residuals(models.PostNorm(), X)
    assert site.added == ((0, 0, 0),)


# Long skips


def test_long_skip_is_reported() -> None:
    """A skip over other resolutions is left out with the reason, and the blocks below it are found."""
    found = find_residuals(models.UNet(), X)
    assert facts(found) == [fact("mid", "mid.branch.0")]
    (left,) = found.left_out
    assert (left.name, left.refused) == ("", False)
    assert left.reason.startswith("a long skip over other")
    assert "long_skips=True" in left.reason


def test_long_skip_on_demand() -> None:
    """With ``long_skips=True`` the long skip is a site as well."""
    found = find_residuals(models.UNet(), X, long_skips=True)
    assert facts(found) == [fact("mid", "mid.branch.0"), fact("", "up", "down mid.branch.0 up")]
    assert left_out(found) == []


def test_layer_at_a_lower_resolution_is_a_branch() -> None:
    """One module that halves the resolution and restores it, as attention on a pooled image, is no long skip."""
    found = find_residuals(Residual(models.Hourglass(), nn.LayerNorm(WIDTH)), X)
    assert facts(found) == [fact("", "branch.1", "branch.0.0 branch.0.1 branch.1")]


def test_all_levels_of_a_nest_are_long_skips() -> None:
    """The innermost of several such modules, one in the other, is as long as those around it."""
    found = find_residuals(
        nn.Sequential(Residual(models.Hourglass(Residual(models.Hourglass()))), Residual(linear())), X
    )
    assert facts(found) == [fact("1", "1.branch.0")]
    assert [(each.name, each.reason[:11]) for each in found.left_out] == [
        ("0.branch.0.1", "a long skip"),
        ("0", "a long skip"),
    ]


def test_low_branch_beside_another_in_a_nest_is_a_long_skip() -> None:
    """A branch at half the resolution that shares its addition with another goes with the level around it."""
    found = find_residuals(nn.Sequential(Residual(models.Hourglass(models.LowBesideAnother())), PreNorm()), X)
    assert facts(found) == [fact("1", "1.fc2", "1.norm 1.fc1 1.fc2", norms="1.norm")]
    assert {each.reason[:11] for each in found.left_out} == {"a long skip"}


# What else is written between an input and an addition


@pytest.mark.parametrize("name", models.WRITTEN)
def test_branch_is_found_however_it_is_written(name: str) -> None:
    """The skip may be pooled, cut and joined, the branch masked, weighed and scaled: the gate is at its layer."""
    both = name in ("scaled sum of two", "some after others")
    found = find_residuals(models.WRITTEN[name], X)
    assert [branch.leaf for branch in found.branches] == (["f", "g"] if both else ["f"])
    assert {site.kind for site in found} == {"parallel" if name == "scaled sum of two" else "identity"}


@pytest.mark.parametrize("name", models.WRITTEN)
def test_conversion_holds_however_it_is_written(name: str) -> None:
    """And it is verified with real numbers: gates at 1 change nothing, gates at 0 leave the skip."""
    model = copy.deepcopy(models.WRITTEN[name])
    y = model(X)
    rezero.convert_(model, X, init_value=1.0)
    assert torch.equal(model(X), y)


def test_many_joins_take_no_time() -> None:
    """A way back through hundreds of writes and joins, as of a cache, is walked once, whatever leads to each."""

    def add(x: Tensor, f: nn.Module, _: nn.Module) -> Tensor:
        y = x.clone()
        for _ in range(100):
            y[:, :1] = y[:, 1:2] * 2
            y = torch.cat((y[:, :1] * 2, y[:, 1:] / 2), 1)
        return y + f(x)

    assert [branch.leaf for branch in find_residuals(models.Written(add), X).branches] == ["f"]


# Streams of their own


def test_positions_that_are_added_again_are_no_skip() -> None:
    """Positions that every layer adds to its queries have a branch in none of them, as in DETR."""
    found = find_residuals(models.PositionsAgain(), (X, X.cos()))
    assert [branch.leaf for branch in found.branches] == ["layers.0", "layers.1"]
    assert [(each.reason, each.refused) for each in found.left_out] == [
        ("neither side is a skip of the other", False),
        (STREAM, False),
    ]


def test_what_a_quantizer_collects_is_no_skip() -> None:
    """A sum of what layers made of the remainders that others left, as of a residual quantizer, has no branch."""
    found = find_residuals(models.Remainders(), X)
    assert not len(found)
    assert ("", STREAM, False) in left_out(found)


# Left out


@pytest.mark.parametrize(
    ("model", "x", "expected"),
    [
        pytest.param(
            models.AveragedHeads(),
            X,
            [("", "both sides have as many layers: neither is a skip", False)],
            id="averaged-heads",
        ),
        pytest.param(
            models.Positions(),
            torch.tensor([[0, 1, 2]]),
            [("", "one side does not depend on the input", False)] * 3,
            id="position-embeddings",
        ),
        pytest.param(models.Polynomial(), X, [("", MOVED, False)] * 2, id="gelu-polynomial-and-rotation"),
        pytest.param(nn.Sequential(linear(), nn.ReLU(), linear()), X, [], id="no-addition"),
    ],
)
def test_no_residual(model: nn.Module, x: Tensor, expected: list[tuple[str, str, bool]]) -> None:
    """A model without residuals gives an empty sequence that names every addition it saw, and why it is none."""
    found = find_residuals(model, x)
    assert list(found) == []
    assert not found
    assert left_out(found) == expected


@pytest.mark.parametrize("how", ["expand_as", "type_as", "to", "zeros_like", "new_ones"])
def test_shape_is_no_data(how: str) -> None:
    """A side that took only its shape, type or device from the skip did not come from it."""
    found = find_residuals(models.PositionsLike(how), X)
    assert list(found) == []
    assert not any(each.refused for each in found.left_out)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(models.Shared(), [("", "fc is used 2 times", True)] * 2, id="module-used-twice"),
        pytest.param(models.Functional(), [("", NO_MODULE, True)], id="function"),
        pytest.param(models.ActivatedInline(), [("", NO_MODULE, True)], id="function-at-the-end"),
        pytest.param(models.UsedElsewhere("returned"), [("", ELSEWHERE, True)], id="branch-returned"),
        pytest.param(models.UsedElsewhere("read"), [("", ELSEWHERE, True)], id="branch-read"),
        pytest.param(models.Cut("sliced"), [("", ELSEWHERE, True)], id="other-slice-returned"),
        pytest.param(models.Cut("split"), [("", ELSEWHERE, True)], id="other-piece-returned"),
        pytest.param(
            Residual(models.Functional(), linear()), [("branch.0", f"{NO_MODULE}, inside a gated branch", False)],
            id="inside-a-gated-branch",
        ),
    ],
)  # fmt: skip
def test_refused(model: nn.Module, expected: list[tuple[str, str, bool]]) -> None:
    """A residual addition that no gate can be given to is refused by name, with the reason."""
    assert left_out(find_residuals(model, X)) == expected


@pytest.mark.parametrize("how", ["sliced and joined", "split and joined"])
def test_branch_that_is_cut_and_joined_again_is_one(how: str) -> None:
    """A sum of the first channels that is joined with the rest of the branch is a padded skip plus the whole branch."""
    assert facts(find_residuals(models.Cut(how), X)) == [fact("", "fc2", "fc1 fc2")]


@pytest.mark.parametrize("drop", [nn.Identity(), nn.Dropout(0.5)], ids=["identity", "dropout"])
def test_module_that_hands_on_the_branch_gets_the_gate(drop: nn.Module) -> None:
    """Where no other module returns the branch, one that returns its input does."""
    assert facts(find_residuals(models.HandsOn(drop), X)) == [fact("", "drop", "fc")]


def test_fourier_transform_is_a_layer() -> None:
    """A branch that mixes positions without parameters is a branch; the module that returns it gets the gate."""
    assert facts(find_residuals(Residual(models.Fourier()), X)) == [fact("", "branch.0", " ")]


def test_skip_may_be_scaled_and_shifted() -> None:
    """A projected skip with a gain and a bias of its own is one still."""
    assert facts(find_residuals(models.Affine(), X)) == [fact("", "fc2", "fc1 fc2", kind="projection")]


def test_writing_changes_what_looks_at_the_same_numbers() -> None:
    """A view read after its tensor was added to has the sum: two additions, one after the other, not side by side."""
    assert facts(find_residuals(models.WritesThroughViews(), X)) == [fact("", "fc1"), fact("", "fc2")]


def test_parts_are_added_to_on_their_own() -> None:
    """Additions to the halves of a tensor are sites of their own; the whole is no older for it."""
    found = find_residuals(models.AddsToParts(), X)
    assert facts(found) == [fact("", "fc1"), fact("", "fc2"), fact("", "fc3")]


def test_branch_may_join_after_others() -> None:
    """A branch that begins on the stream before two others and is added after them is a branch like them."""
    found = find_residuals(models.Beside(), X)
    assert [(site.kind, site.branches[0].leaf) for site in found] == [
        ("identity", "fc1"),
        ("identity", "fc2"),
        ("identity", "late.2"),
    ]
    assert found[2].pre_norms == ("norm",)


def test_sum_that_nobody_reads_is_left_out() -> None:
    """An addition on which no output depends is named and left alone: a gate there could never learn."""
    found = find_residuals(models.Ignored(), X)
    assert facts(found) == [fact("", "body")]
    assert left_out(found) == [("", UNREAD, False)]


def test_sum_that_only_chooses_is_left_alone() -> None:
    """An addition that decides about whole numbers alone, as an audio codec's encoder does, has no gradient."""
    found = find_residuals(models.Codes(), X)
    assert facts(found) == [fact("decoder", "decoder.branch.0")]
    assert left_out(found) == [("encoder", UNREAD, False)]


@pytest.mark.parametrize("cut", ["no_grad", "detach", "data"])
def test_sum_without_a_gradient_is_left_alone(cut: str) -> None:
    """An addition before a place where gradients are cut off is no site: a gate there could never learn."""
    found = find_residuals(models.Codec(cut), X)
    assert facts(found) == [fact("decoder", "decoder.branch.0")]
    assert left_out(found) == [("encoder", UNREAD, False)]
    assert find_residuals(models.Codec(cut).decoder, X).left_out == ()


@pytest.mark.parametrize("cut", ["no_grad", "detach", "data"])
def test_module_used_without_a_gradient_too_is_no_branch(cut: str) -> None:
    """A module that is also used where no gradient comes back is used twice: its gate would change both."""
    model = models.Codec(cut)
    model.encoder = model.decoder.branch
    found = find_residuals(model, X)
    assert len(found) == 0
    assert any(left.refused for left in found.left_out)


@pytest.mark.parametrize("function", ["addcmul", "rsub", "baddbmm", "index_add"])
def test_residuals_added_by_another_function_are_refused(function: str) -> None:
    """What adds a branch without being an addition of two tensors is named, not passed over; filter_fn leaves it."""
    model = nn.Sequential(Residual(linear()), models.AddsOtherwise(function))
    found = find_residuals(model, X)
    assert facts(found) == [fact("0", "0.branch.0")]
    assert left_out(found) == [("1", f"added by torch.{function}: write x + f(x)", True)]
    found = find_residuals(model, X, filter_fn=lambda _, name: name.startswith("0"))
    assert left_out(found) == [("1", "not wanted by filter_fn", False)]


@pytest.mark.parametrize("function", ["stack", "lerp"])
def test_what_is_mixed_with_its_branch_is_listed(function: str) -> None:
    """A mean of a stream and what comes of it gets no gate, and says so."""
    found = find_residuals(nn.Sequential(Residual(linear()), models.AddsOtherwise(function)), X)
    assert facts(found) == [fact("0", "0.branch.0")]
    assert left_out(found) == [("1", f"mixed by torch.{function}: no gate can be given to that", False)]


@pytest.mark.parametrize("batch", [(), (1,)])
def test_queries_are_a_skip_for_every_input(batch: tuple[int, ...]) -> None:
    """What is added to learned queries is a branch, though the queries are the same for all inputs of a batch."""
    model = models.Latents(*batch)
    found = find_residuals(model, X)
    assert facts(found) == [fact("", "read"), fact("", "mlp")]
    rezero.convert_(model, X)
    assert torch.equal(model(X), model.queries.expand(len(X), -1, -1))


def test_boxes_that_move_are_no_branches() -> None:
    """Where a part of a stream moves by as much as another part of it says, nothing is gated, and it says so."""
    found = find_residuals(models.Boxes(), X)
    assert facts(found) == [fact("block", "block.branch.0")]
    reason = "a part of the skip moves by as much as another part of it says, as boxes do: no branch"
    assert left_out(found) == [("", reason, False)]


def test_a_norm_with_an_activation_stays() -> None:
    """A norm that is an activation too is not among those that can be removed."""
    block = Residual(nn.Sequential(models.NormAndReLU(2, 4), nn.Conv2d(4, 4, 1)))
    found = find_residuals(nn.Sequential(block), IMAGE)
    assert found[0].pre_norms == ()
    assert found.removable == frozenset()


def test_block_that_has_a_gate_gets_no_second_one() -> None:
    """A block of this library among others is left alone: its alpha is its own."""
    found = find_residuals(nn.Sequential(Residual(linear()), ReZero(linear())), X)
    assert facts(found) == [fact("0", "0.branch.0")]
    assert left_out(found) == [("1", "gated already", False)]


def test_quantizer_is_no_branch() -> None:
    """In x + (f(x) - x) nothing of x is left: it is left out, and refuses nothing."""
    found = find_residuals(nn.Sequential(linear(), models.Straight(), Residual(linear())), X)
    assert facts(found) == [fact("2", "2.branch.0")]
    assert left_out(found)[-1] == ("1", NO_MODULE, False)


def test_repeating_is_another_resolution() -> None:
    """A way that is cut short and repeated to length again is a long skip."""
    found = find_residuals(models.Repeated(), X)
    assert facts(found) == [fact("", "fc1"), fact("", "fc2")]
    assert left_out(found) == [("", "a long skip over other resolutions: ask for it with long_skips=True", False)]


def test_module_used_several_times_can_be_tied() -> None:
    """On demand a module whose every use is a branch gets one gate; one with another use is refused all the same."""
    assert facts(find_residuals(models.Shared(), X, repeated="tie")) == [fact("", "fc"), fact("", "fc")]
    model = nn.Sequential(models.Shared(), linear())
    model[1] = model[0].fc
    assert (
        left_out(find_residuals(model, X, repeated="tie"))
        == [("0", "0.fc is used 3 times, 2 of them as a branch", True)] * 2
    )


def test_shared_end_of_branches_can_be_tied() -> None:
    """A module that alone ends some branches gets the gate of all that it ends, also of those that others end."""
    found = find_residuals(models.SharedEnd(), X, repeated="tie")
    assert [branch.leaf for branch in found.branches] == ["drop_path"] * 4
    reasons = [reason for _, reason, _ in left_out(find_residuals(models.SharedEnd(), X))]
    assert [reason for reason in reasons if "used" in reason] == [
        *["drop_path is used 4 times"] * 2,
        *["both is used 2 times"] * 2,
    ]


def test_pieces_that_are_joined_again_are_a_skip() -> None:
    """A skip of which one part is pooled, as beside a class token, comes from one value all the same."""
    found = find_residuals(models.PooledBeside(), X)
    assert facts(found) == [fact("", "fc"), fact("", "fc2", "fc1 fc2", kind="projection")]


def test_shared_parameter_is_no_shared_module() -> None:
    """Two layers that share a weight are two leaves."""
    model = nn.Sequential(Residual(linear()), Residual(linear()))
    model[1].branch[0].weight = model[0].branch[0].weight
    assert [branch.leaf for branch in find_residuals(model, X).branches] == ["0.branch.0", "1.branch.0"]


def test_module_with_two_names_goes_by_its_first() -> None:
    """A module that is registered twice and called once has the name it was first given."""
    model = Residual(linear())
    model.alias = model.branch
    assert facts(find_residuals(model, X)) == [fact("", "branch.0")]


# What is returned


def test_sequence() -> None:
    """The result is a sequence of sites: it has a length, indices, slices, an order, and all branches in one."""
    found = find_residuals(nn.Sequential(PreNorm(), models.Parallel("skip first")), X)
    assert isinstance(found, Sequence)
    assert len(found) == 2
    assert found[-1] is found[1]
    assert found[:1] == (found[0],)
    assert found[0] in found
    assert [branch.leaf for branch in found.branches] == ["0.fc2", "1.attn.out", "1.mlp.1"]
    assert repr(found) == "<2 residual additions, 3 branches, 0 left out>"


def test_table() -> None:
    """It prints as a table of the sites and of what was left out, the same every time."""
    model = nn.Sequential(PreNorm(), models.PostNorm(), models.Parallel("skip first"), models.Shared())
    shown = str(find_residuals(model, X))
    assert shown.splitlines() == [
        "where  kind      gate at              norms before      norm after",
        "0      identity  0.fc2                0.norm",
        "1      identity  1.fc                                   1.norm",
        "2      parallel  2.attn.out, 2.mlp.1  2.norm1, 2.norm2",
        "",
        "left out:",
        "  2 refused: 3.fc is used 2 times (3)",
    ]
    assert str(find_residuals(model, X)) == shown


def test_brief_table() -> None:
    """Layers in a row that differ in their number alone share their rows, and others do not."""
    layers = [*(PreNorm() for _ in range(12)), models.PostNorm(), PreNorm()]
    assert find_residuals(nn.Sequential(*layers), X).table(brief=True).splitlines() == [
        "where  kind      gate at   norms before  norm after",
        "0-11   identity  0-11.fc2  0-11.norm",
        "12     identity  12.fc                   12.norm",
        "13     identity  13.fc2    13.norm",
    ]
    model = PreNorm()
    assert find_residuals(model, X).table(brief=True) == str(find_residuals(model, X))


def test_brief_table_of_stages() -> None:
    """Alike layers of a stage share a row, then alike stages, and so do the names of what is left out."""
    stages = [nn.Sequential(*(PreNorm() for _ in range(count))) for count in (2, 2, 3)]
    empty = [Residual(nn.Tanh()) for _ in range(4)]
    assert find_residuals(nn.Sequential(*stages, *empty), X).table(brief=True).splitlines() == [
        "where    kind      gate at      norms before",
        "0-1.0-1  identity  0-1.0-1.fc2  0-1.0-1.norm",
        "2.0-2    identity  2.0-2.fc2    2.0-2.norm",
        "",
        "left out:",
        "  4 no parameters between skip and branch (3-6)",
    ]


@pytest.mark.parametrize("options", [{}, {"gate": "tanh"}, {"share": "layer"}], ids=["scalar", "tanh", "shared"])
def test_table_of_a_converted_model(options: dict[str, Any]) -> None:
    """What has a gate already is named, also where the gate is in the weights of a layer that another calls."""
    model = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    assert "gated already" not in str(find_residuals(model, X))
    rezero.convert_(model, X, init_value=0.5, **options)
    found = find_residuals(model, X)
    assert str(found).endswith(f"\ngated already: {', '.join(rezero.gates(model))}")
    assert found.to_json()["gated"] == list(rezero.gates(model))


def test_table_of_nothing() -> None:
    """Without residuals it says so, and names what was looked at."""
    assert str(find_residuals(linear(), X)) == "no residual additions"
    assert str(find_residuals(models.AveragedHeads(), X)).splitlines() == [
        "no residual additions",
        "",
        "left out:",
        "  1 both sides have as many layers: neither is a skip (the model)",
    ]


def test_filter() -> None:
    """``filter_fn`` is shown the module and the name of every leaf, and those it turns down are left out."""
    model, seen = nn.Sequential(PreNorm(), PreNorm(), models.PostNorm()), {}

    def wanted(module: nn.Module, name: str) -> bool:
        seen[name] = module
        return name.startswith("1.")

    found = find_residuals(model, X, filter_fn=wanted)
    assert seen == {name: model.get_submodule(name) for name in ("0.fc2", "1.fc2", "2.fc")}
    assert [site.name for site in found] == ["1"]
    assert left_out(found) == [("0", "not wanted by filter_fn", False), ("2", "not wanted by filter_fn", False)]


def test_removable_norms() -> None:
    """Norms may go if they feed gated branches alone; a norm that a filter spares, or a final one, may not."""
    model = nn.Sequential(models.FinalNorm().blocks[0], models.PostNorm(), PreNorm(), models.Sandwich(), models.norm())
    assert find_residuals(model, X).removable == {"0.norm", "1.norm", "2.norm", "3.before"}
    spared = find_residuals(model, X, filter_fn=lambda _, name: not name.startswith("2"))
    assert spared.removable == {"0.norm", "1.norm", "3.before"}


def test_final_norm_is_not_removable() -> None:
    """The norm before the head stays, also where one ``forward`` does everything."""
    assert find_residuals(models.FlatFinalNorm(), X).removable == {"norm1", "norm2"}


# The model stays as it was


def state(model: models.Restless) -> dict[str, Any]:
    """List what a forward pass might have changed."""
    return {
        "keys": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "state": {key: (id(value), value.tolist()) for key, value in model.state_dict(keep_vars=True).items()},
        "modes": [module.training for module in model.modules()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()],
        "wants": [p.requires_grad for p in model.parameters()],
        "plain": (model.count, model.temporary, model.drop.p, model.cache, model.log, model.seen),
        "identities": (id(model.cache), id(model.log), id(model.seen), id(model.memory)),
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "torch": (torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.get_default_device()),
        "fast": torch.backends.mha.get_fastpath_enabled(),
        "random": random.getstate(),
        "numpy": [str(each) for each in np.random.get_state()],
    }


@pytest.mark.parametrize("looks", [False, True], ids=["shapes", "numbers"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_undisturbed(*, looks: bool, training: bool) -> None:
    """Attributes, buffers, statistics, modes, gradients and random states are as before, bit for bit."""
    model = models.Restless(looks=looks).train(training)
    model.drop.train(not training)
    model.fc.weight.grad = torch.ones(WIDTH, WIDTH)
    model.fc.bias.requires_grad_(False)
    before = state(model)
    found = find_residuals(model, X)
    assert state(model) == before
    assert [branch.leaf for branch in found.branches] == ["fc"]


def test_input_is_undisturbed() -> None:
    """The example is not written into, though the model adds in place."""
    x = X.clone()
    find_residuals(models.Parallel("in place"), x)
    assert torch.equal(x, X)


def test_inference_and_compute_after() -> None:
    """The model computes, trains and saves after it was looked at as if nothing had happened."""
    model = nn.Sequential(PreNorm(), models.PostNorm())
    before = model(X)
    find_residuals(model, X)
    after = model(X)
    assert torch.equal(before, after)
    after.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_lazy_module_stays_lazy() -> None:
    """A layer without a shape yet is refused with one clear error and is not given one."""
    model = Residual(nn.LazyLinear(WIDTH))
    with pytest.raises(UsageError, match=r"lazy|uninitialized"):
        find_residuals(model, X)
    assert isinstance(model.branch[0].weight, UninitializedParameter)


# Meta device


def test_meta_device_allocates_nothing() -> None:
    """A branch of 400 GB of weights is found on the meta device, whether the example is there or not."""
    width = 100_000
    with torch.device("meta"):
        model = Residual(*(nn.Linear(width, width) for _ in range(10)), nn.LayerNorm(width))
    for device in ("cpu", "meta"):
        found = find_residuals(model, torch.empty(1, width, device=device))
        assert [branch.leaf for branch in found.branches] == ["branch.10"]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_meta_device_with_statistics() -> None:
    """Buffers on the meta device, such as BatchNorm's, are no obstacle."""
    with torch.device("meta"):
        model = models.BasicBlock("B").train()
    (site,) = find_residuals(model, IMAGE)
    assert site.kind == "projection"
    assert all(buffer.is_meta for buffer in model.buffers())


# What can't be run


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_input_names_module_and_line(device: str) -> None:
    """An example that doesn't fit gives one error with the module, its class, the file and the line."""
    with torch.device(device):
        model = nn.Sequential(PreNorm(), nn.Linear(5, 5))
    with pytest.raises(UsageError, match=r"can't be run .* in 1 \(Linear\), \S+linear\.py:\d+: .*(mat1|reduction dim)"):
        find_residuals(model, X)


def test_error_in_own_code_names_its_line() -> None:
    """An error that the model raises itself is told with the line that raised it."""

    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError("not on Sundays")

    model = Residual(linear(), Raises())
    with pytest.raises(UsageError, match=r"in branch\.1 \(Raises\), \S+test_find\.py:\d+: not on Sundays") as caught:
        find_residuals(model, X)
    assert isinstance(caught.value.__cause__, NotImplementedError)


@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
def test_scripted_model_is_refused() -> None:
    """A model whose code can't be followed is no model without residuals."""
    model = torch.jit.trace(nn.Sequential(Residual(linear())), X)
    with pytest.raises(UsageError, match=r"is scripted, its code can't be followed: convert the model before"):
        find_residuals(model, X)


def test_no_module() -> None:
    """What is no module is a TypeError that says what came."""
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got NoneType"):
        find_residuals(None, X)  # type: ignore[arg-type]


def test_missing_argument() -> None:
    """A forgotten argument is named."""
    with pytest.raises(UsageError, match=r"can't be run on the example input.*missing 1 required .*'states'"):
        find_residuals(models.Keywords())


@pytest.mark.parametrize("looks", [False, True], ids=["shapes", "numbers"])
def test_failed_call_leaves_the_model(*, looks: bool) -> None:
    """After an error everything is as before."""
    model = models.Restless(looks=looks)
    before = state(model)
    with pytest.raises(UsageError, match=r"in bn \(BatchNorm1d\)"):
        find_residuals(model, torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)))
    assert state(model) == before


# Random graphs


class Block(nn.Module):
    """Adds branches to a skip, in one of four orders; takes and may return tuples."""

    def __init__(self, branches: Sequence[nn.Module], shortcut: nn.Module | None, *, order: int, pair: bool) -> None:
        super().__init__()
        self.branches, self.shortcut = nn.ModuleList(branches), shortcut
        self.order, self.pair = order, pair

    def forward(self, x: Tensor) -> Any:
        skip = x if self.shortcut is None else self.shortcut(x)
        results = [branch(x) for branch in self.branches]
        terms = [result[0] if isinstance(result, tuple) else result for result in results]
        if self.order % 2 and len(terms) > 1:
            terms[-2:] = [terms[-2] + terms[-1]]
        total = terms[0] + skip if self.order // 2 else skip + terms[0]
        for term in terms[1:]:
            total = total + term
        return (total, results) if self.pair else total


class Pair(nn.Module):
    """Returns what its layer returns, and something else."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.layer(x)
        return out, x.sum()


class Chain(nn.Module):
    """One block after the other."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            out = block(x)
            x = out[0] if isinstance(out, tuple) else out
        return x


@dataclass(frozen=True)
class Expected:
    """A residual addition of a random graph: who adds, what is gated; the shared layer that ends it, if one does."""

    name: str
    kind: str
    leaves: tuple[str, ...]
    shared: nn.Module | None = None
    inner: bool = False


class Drawer:
    """Draws a graph of residual blocks and writes down what must be found in it."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.blocks_left = 12
        self.uses: dict[nn.Module, int] = {nn.Linear(5, 5): 0, nn.Linear(5, 5): 0}
        self.expected: list[Expected] = []
        self.wrappers: dict[int, nn.Module] = {}  # which shared layer is the end of which expected branch

    def chain(self, name: str, width: int, *, most: int, depth: int) -> tuple[list[nn.Module], int]:
        """Draw blocks one after the other, and the width that they end with."""
        kinds = ["plain", "identity", "projection", "parallel", "pair", "shared", "wrapped", "through"]
        kinds += ["nested"] * (depth < 2)
        blocks: list[nn.Module] = []
        for i in range(self.draw(st.integers(1, most))):
            if self.blocks_left == 0:
                break
            self.blocks_left -= 1
            block, width = getattr(self, self.draw(st.sampled_from(kinds)))(f"{name}.{i}", width, depth)
            blocks.append(block)
        return blocks, width

    def block(
        self,
        name: str,
        kind: str,
        parts: Sequence[nn.Module],
        leaves: Sequence[str],
        depth: int,
        shortcut: nn.Module | None = None,
        shared: nn.Module | None = None,
        *,
        pair: bool = False,
    ) -> Block:
        """Build a block and expect it."""
        self.expected.append(Expected(name, kind, tuple(leaves), shared, depth > 0))
        return Block(parts, shortcut, order=self.draw(st.integers(0, 3)), pair=pair)

    def branch(self, name: str, width: int, out: int) -> tuple[nn.Module, str]:
        """Draw a branch of two layers and more, and the name of its leaf."""
        layers: list[nn.Module] = [nn.LayerNorm(width)] * self.draw(st.integers(0, 1))
        layers += [nn.Linear(width, out)] + [nn.ReLU()] * self.draw(st.integers(0, 1)) + [nn.Linear(out, out)]
        leaf = f"{name}.{len(layers) - 1}"
        return nn.Sequential(*layers, *[nn.Dropout(0.1)] * self.draw(st.integers(0, 1))), leaf

    def layer(self) -> nn.Module:
        """Draw one of the shared layers."""
        chosen: nn.Module = self.draw(st.sampled_from(list(self.uses)))
        self.uses[chosen] += 1
        return chosen

    def plain(self, _name: str, width: int, _depth: int) -> tuple[nn.Module, int]:
        out = self.draw(st.sampled_from((4, 6, 8)))
        return Chain([nn.Linear(width, out), nn.ReLU()]), out

    def identity(self, name: str, width: int, depth: int) -> tuple[nn.Module, int]:
        part, leaf = self.branch(f"{name}.branches.0", width, width)
        return self.block(name, "identity", [part], [leaf], depth), width

    def projection(self, name: str, width: int, depth: int) -> tuple[nn.Module, int]:
        out = self.draw(st.sampled_from((4, 6, 8)))
        part, leaf = self.branch(f"{name}.branches.0", width, out)
        return self.block(name, "projection", [part], [leaf], depth, nn.Linear(width, out)), out

    def parallel(self, name: str, width: int, depth: int) -> tuple[nn.Module, int]:
        number = self.draw(st.integers(2, 3))
        parts, leaves = zip(*(self.branch(f"{name}.branches.{i}", width, width) for i in range(number)), strict=True)
        return self.block(name, "parallel", parts, leaves, depth), width

    def pair(self, name: str, width: int, depth: int) -> tuple[nn.Module, int]:
        part, leaf = self.branch(f"{name}.branches.0.layer", width, width)
        return self.block(name, "identity", [Pair(part)], [leaf], depth, pair=self.draw(st.booleans())), width

    def shared(self, name: str, width: int, depth: int) -> tuple[nn.Module, int]:
        """A shared layer that is the branch makes it refused, unless that is its only use."""
        if width != 5:
            return Chain([nn.Linear(width, 5), nn.ReLU()]), 5
        layer = self.layer()
        return self.block(name, "identity", [layer], [f"{name}.branches.0"], depth, shared=layer), width

    def wrapped(self, name: str, width: int, depth: int) -> tuple[nn.Module, int]:
        """A shared layer that ends the branch leaves the gate to the module around it."""
        layer = self.layer()
        part = nn.Sequential(nn.Linear(width, 5), layer)
        block = self.block(name, "projection", [part], [f"{name}.branches.0"], depth, nn.Linear(width, 5))
        self.wrappers[len(self.expected) - 1] = layer
        return block, 5

    def through(self, name: str, width: int, depth: int) -> tuple[nn.Module, int]:
        """A shared layer in the middle of the branch is no obstacle."""
        part = nn.Sequential(nn.Linear(width, 5), self.layer(), nn.Linear(5, width))
        return self.block(name, "identity", [part], [f"{name}.branches.0.2"], depth), width

    def nested(self, name: str, width: int, depth: int) -> tuple[nn.Module, int]:
        inner, end = self.chain(f"{name}.branches.0.blocks", width, most=2, depth=depth + 1)
        part = Chain([*inner, nn.Linear(end, width)])
        return self.block(name, "identity", [part], [f"{name}.branches.0.blocks.{len(inner)}"], depth), width


@given(st.data())
@settings(max_examples=100, deadline=None, derandomize=True, phases=(Phase.generate,))  # to shrink takes minutes
def test_random_graphs_are_found_exactly(data: st.DataObject) -> None:
    """In a random graph of up to 12 blocks the sites are those it was built with, and the shared layers are refused."""
    drawer = Drawer(data.draw)
    blocks, _ = drawer.chain("blocks", 6, most=12, depth=0)
    model = Chain(blocks)
    found = find_residuals(model, torch.zeros(2, 6))
    names = {module: name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}
    gated, refused = [], []
    for i, each in enumerate(drawer.expected):
        uses = drawer.uses[each.shared] if each.shared is not None else 1
        alone = i in drawer.wrappers and drawer.uses[drawer.wrappers[i]] == 1
        leaves = tuple(f"{leaf}.1" for leaf in each.leaves) if alone else each.leaves
        if uses == 1:
            gated.append((each.name, each.kind, leaves))
        else:
            reason = f"{names[each.shared]} is used {uses} times"
            refused.append((each.name, reason + ", inside a gated branch" * each.inner, not each.inner))
    assert [(site.name, site.kind, tuple(b.leaf for b in site.branches)) for site in found] == gated
    assert left_out(found) == refused
