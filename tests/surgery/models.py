"""Small models with known residual additions. Their width is 8, their input (2, 3, 8), unless it is an image."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 8


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH)


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = norm(), linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class PostNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = linear(), norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x) + x)


class Sandwich(nn.Module):
    """Norms before and after the branch, as in Gemma 2."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.fc, self.after = norm(), linear(), norm()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.after(self.fc(self.before(x)))


class FinalNorm(nn.Module):
    """Pre-norm blocks, then a norm of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.norm, self.head = nn.ModuleList([PreNorm(), PreNorm()]), norm(), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class FlatFinalNorm(nn.Module):
    """Pre-norm sublayers and the norm of the whole in one ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.fc1, self.norm2, self.fc2 = norm(), linear(), norm(), linear()
        self.norm, self.head = norm(), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.fc1(self.norm1(x))
        x = x + self.fc2(self.norm2(x))
        return self.head(self.norm(x))


class BasicBlock(nn.Module):
    """ResNet's block: a convolutional shortcut (B), a padded one (A), or none."""

    def __init__(self, shortcut: str) -> None:
        super().__init__()
        out, stride = (4, 1) if shortcut == "none" else (8, 2)
        self.conv1, self.bn1 = nn.Conv2d(4, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.option = shortcut
        if shortcut == "B":
            self.down = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.option == "A":
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        if self.option == "B":
            x = self.down(x)
        out += x
        return self.relu(out)


class PoolProjection(nn.Module):
    """A skip that is projected and max-pooled, as in Hiera."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.fc1, self.fc2 = linear(), linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).amax(dim=1, keepdim=True).expand_as(x) + self.fc2(self.fc1(x))


class Parallel(nn.Module):
    """Attention and MLP side by side, with a norm for both or one for each."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn, self.mlp = norm(), norm(), Attention(), nn.Sequential(linear(), nn.GELU())
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        a, m = self.attn(self.norm1(x)), self.mlp(self.norm2(x))
        match self.order:
            case "skip first":
                return x + a + m
            case "skip last":
                return a + m + x
            case "skip outside":
                return x + (a + m)
            case "skip between":
                return a + x + m
            case "in place":
                x += a
                x += m
                return x
            case _:
                return x + torch.stack([a, m]).sum(0)


class Attention(nn.Module):
    """One head; with ``weights`` it returns a tuple."""

    def __init__(self, *, weights: bool = False) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), linear()
        self.weights = weights

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.mT
        if mask is not None:
            scores = scores + mask
        weights = scores.softmax(-1)
        out = self.out(weights @ v)
        return (out, weights) if self.weights else out


class FunctionalAttention(nn.Module):
    """Multiplies by a parameter of its own and returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = (x @ x.mT).softmax(-1)
        return weights @ x @ self.weight, weights


class TupleLayer(nn.Module):
    """Layers hand each other tuples; with keyword arguments."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm, self.attn = norm(), attention

    def forward(self, hidden: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        out, weights = self.attn(self.norm(hidden), **kwargs)
        return hidden + out, weights


class Keywords(nn.Module):
    """Everything by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([TupleLayer(Attention(weights=True)) for _ in range(2)])

    def forward(self, *, states: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        for layer in self.layers:
            states, _ = layer(hidden=states, mask=mask)
        return {"states": states}


class Simple(nn.Module):
    """A linear layer ``fc`` beside a skip, in the way of a function."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc, self.drop = linear(), nn.Dropout(0.5)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "class token":
            return torch.cat([x[:, :1] + self.fc(x)[:, :1], x[:, 1:]], dim=1)
        branch = self.fc(x)
        match self.how:
            case "x += f":
                x = x.clone()
                x += branch
                return x
            case "f += x":
                branch += x
                return branch
            case "add_":
                return branch.add_(x)
            case "torch.add":
                return torch.add(x, branch, alpha=0.5)
            case "minus":
                return x - branch
            case "dropout module":
                return x + self.drop(branch)
            case "dropout function":
                return x + F.dropout(branch, 0.5, training=self.training)
            case "half":
                return x + x.new_tensor(0.5) * branch
            case "scaled":
                return 0.7 * x + branch / 2**0.5
            case "drop path":
                return x + branch * torch.ones(len(x), 1, 1).bernoulli_(0.5).div_(0.5)
            case "reshaped":
                return x + branch.reshape(2, 24).view(2, 3, 8).contiguous()
            case "cast":
                return x.double() + branch.double()
            case "sum":
                return sum([x, branch])  # type: ignore[return-value]
            case _:
                return x + branch


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((WIDTH,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class InlineLayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gamma = linear(), nn.Parameter(torch.full((WIDTH,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.fc(x)


class OwnParameter(nn.Module):
    """Owns a parameter that is no part of the branch, and computes a part of the branch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.table = linear(), linear(), nn.Parameter(torch.zeros(3, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.table
        return x + self.fc2(F.gelu(self.fc1(x)))


class Residual(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class AddsByModule(nn.Module):
    """Two additions by one module without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.add = linear(), linear(), Add()

    def forward(self, x: Tensor) -> Tensor:
        x = self.add(x, self.fc1(x))
        return self.add(x, self.fc2(x))


class UNet(nn.Module):
    """Two resolutions, residual blocks at the bottom, a skip over all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv1d(3, 3, 2, 2), nn.ConvTranspose1d(3, 3, 2, 2)
        self.mid = Residual(nn.Conv1d(3, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.mid(self.down(x)))


class Written(nn.Module):
    """Adds as it is told: a function of the input and of two layers."""

    def __init__(self, add: Callable[[Tensor, nn.Module, nn.Module], Tensor]) -> None:
        super().__init__()
        self.f, self.g, self.add = linear(), linear(), add

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.f, self.g)


def _with_an_unread_use(x: Tensor, f: nn.Module, _: nn.Module) -> Tensor:
    x = x + f(x)
    f(x[:, :1])
    return x


def _joined(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
    first, others = x[:, :1], x[:, 1:].tanh()
    read = torch.cat((first, others), 1)
    return torch.cat((first, others), 1) + f(g(read))


def _in_turns(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
    first = torch.tensor([True, False, False])
    x = x.clone()
    some, others = f(x[:, first]), g(x[:, ~first])
    x[:, first] += some
    x[:, ~first] += others
    return x


WRITTEN = {
    "maximum of two": Written(lambda x, f, _: x.unflatten(-1, (4, 2)).max(-1).values + f(x)[..., :4]),
    "windows averaged": Written(lambda x, f, _: x.unfold(1, 2, 1).mean(-1) + f(x)[:, :2]),
    "padding masked": Written(lambda x, f, _: x + f(x).masked_fill(torch.tensor([[0], [0], [1]]).bool(), 0.0)),
    "weighed by another layer": Written(lambda x, f, g: x + g(x).sigmoid()[..., :1] * f(x)),
    "scaled sum of two": Written(lambda x, f, g: x + 0.5 * (f(x) + g(x))),
    "used again for nothing": Written(_with_an_unread_use),
    "joined for both": Written(_joined),
    "some after others": Written(_in_turns),
}


class Codes(nn.Module):
    """An encoder of which only the places of the largest features are known to the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.book = Residual(linear()), Residual(linear()), nn.Embedding(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.book(self.encoder(x).argmax(-1)))


class Codec(nn.Module):
    """A codec whose frozen encoder runs without gradients, or is cut off by a detached tensor."""

    def __init__(self, cut: str) -> None:
        super().__init__()
        self.encoder, self.decoder, self.cut = Residual(linear()), Residual(linear()), cut

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.cut != "no_grad"):
            codes = self.encoder(x)
        return self.decoder({"no_grad": codes, "detach": codes.detach(), "data": codes.data}[self.cut])


class PositionsAgain(nn.Module):
    """Two layers, each of which adds positions to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([linear(), linear()])

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x + places)
        return x


class Remainders(nn.Module):
    """A residual quantizer without its rounding: each layer reads what the one before has left."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(linear(), nn.Tanh()), nn.Sequential(linear(), nn.Tanh())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x)
        second = self.second(x - first)
        return first + second, x - first - second


class Hourglass(nn.Sequential):
    """A way to half the resolution and back, with something or nothing in the middle."""

    def __init__(self, *middle: nn.Module) -> None:
        super().__init__(nn.Conv1d(3, 3, 2, 2), *middle, nn.ConvTranspose1d(3, 3, 2, 2))


class LowBesideAnother(nn.Module):
    """A branch at half the resolution and one that stays, added in one expression."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.other = Hourglass(), nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.low(x) + self.other(x)


class AveragedHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.dist = linear(), nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (self.head(x[:, 0]) + self.dist(x[:, 1])) / 2


class Positions(nn.Module):
    """Learned, looked-up and fixed position embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(5, WIDTH), nn.Embedding(3, WIDTH)
        self.table = nn.Parameter(torch.zeros(1, 3, WIDTH))
        self.register_buffer("waves", torch.randn(3, WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(3, device=ids.device))
        return x + self.table + self.waves


class PositionsLike(nn.Module):
    """Position embeddings that know the shape or the type of the input, and nothing else of it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.places, self.mix = nn.Embedding(3, WIDTH), linear()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "expand_as":
                return x + self.places(torch.arange(3)).expand_as(x)
            case "type_as":
                return x + self.places(torch.arange(3)).type_as(x)
            case "to":
                return x + self.places(torch.arange(3)).to(x)
            case "zeros_like":
                return x + self.places(torch.zeros_like(x[..., 0], dtype=torch.long))
            case _:
                return x + self.mix(x.new_ones(3, WIDTH))


class Polynomial(nn.Module):
    """GELU's polynomial, as old GPTs write it out, and a rotation of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear()

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        x = 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3))))
        first, second = x.chunk(2, -1)
        return x * 0.6 + torch.cat([-second, first], -1) * 0.8


class SharedEnd(nn.Module):
    """A drop-path of all branches of two streams: it alone ends the first two, a layer used twice ends the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.both, self.drop_path = linear(), linear(), linear(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x, y = x[:, :1], x[:, 1:2]
        one, two = self.first(x), self.second(y)
        x, y = x + self.drop_path(one + two), y + self.drop_path(two + one)
        return torch.cat((x + self.drop_path(self.both(x)), y + self.drop_path(self.both(y))), -1)


class PooledBeside(nn.Module):
    """A first token and pooled others, joined, are a skip, as in MViT; projected, too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.short, self.fc1, self.fc2 = linear(), linear(), linear(), linear()

    def pooled(self, x: Tensor) -> Tensor:
        return torch.cat((x[:, :1], F.avg_pool1d(x[:, 1:].transpose(1, 2), 2).transpose(1, 2)), 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pooled(x) + self.fc(x)[:, 1:]
        return self.pooled(self.short(x)[:, [0, 0, 1]]) + self.fc2(F.relu(self.fc1(x)))


class Shared(nn.Module):
    """One layer, two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.fc(x)
        return x + self.fc(x)


class SharedWithin(nn.Module):
    """A layer that two branches go through on their way to layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out1, self.out2 = linear(), linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out1(self.fc(x))
        return x + self.out2(self.fc(x))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(x @ self.weight)


class Cut(nn.Module):
    """Cuts the branch in two: one part is added, the other is joined with the sum, or goes elsewhere."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.how = linear(), nn.Linear(WIDTH, WIDTH + 2), how

    def forward(self, x: Tensor) -> Any:
        branch = self.fc2(self.fc1(x))
        if "split" in self.how:
            added, rest = branch.split([WIDTH, 2], dim=-1)
        else:
            added, rest = branch[..., :WIDTH], branch[..., WIDTH:]
        if "joined" in self.how:
            return torch.cat([x + added, rest], dim=-1)
        return x + added, rest


class HandsOn(nn.Module):
    """The branch ends in a function; then a module returns it that changes nothing in evaluation."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.fc, self.drop = linear(), drop

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(F.relu(self.fc(x)))


class Fourier(nn.Module):
    """Mixes without parameters, as in FNet."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fftn(x, dim=(1, 2)).real


class Affine(nn.Module):
    """A skip that is projected, scaled and shifted, as in MobileBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.fc1, self.fc2 = linear(), linear(), linear()
        self.weight, self.bias = nn.Parameter(torch.full((WIDTH,), 0.5)), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x) * self.weight + self.bias + self.fc2(F.gelu(self.fc1(x)))


class WritesThroughViews(nn.Module):
    """Adds in place to a tensor of which it holds a view, then reads the view."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        flat = y.view(-1, WIDTH)
        y += self.fc1(y)
        return y + self.fc2(flat.view(y.shape))


class AddsToParts(nn.Module):
    """Adds in place to either half of a tensor, then goes on with the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 4), nn.Linear(4, 4), linear()

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        first, second = y.chunk(2, dim=-1)
        first += self.fc1(first)
        second += self.fc2(second)
        return y + self.fc3(y)


class Beside(nn.Module):
    """A branch that begins before two others and joins after them, as in LongCat-Flash."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = norm(), linear(), linear()
        self.late = nn.Sequential(linear(), nn.GELU(), linear())

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        late = self.late(h)
        x = x + self.fc1(h)
        x = x + self.fc2(x)
        return x + late


class Straight(nn.Module):
    """Quantises its input, with a gradient that passes straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        nearest = (x.unsqueeze(-2) - self.codes.weight).square().sum(-1).argmin(-1)
        return x + (self.codes(nearest) - x).detach()


class Repeated(nn.Module):
    """A residual branch at half the length, repeated to the whole and added, as in Funnel."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.fc1(x)
        short = x[:, ::2]
        short = short + self.fc2(short)
        return short.repeat_interleave(2, dim=1)[:, : x.shape[1]] + x


class Ignored(nn.Module):
    """Computes a sum that it returns to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.body(x)
        self.pooled = x[:, :1] + self.head(x[:, :1])
        return x


class ActivatedInline(nn.Module):
    """The branch ends in a function that no module calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear()

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.fc(x))


class UsedElsewhere(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc, self.head = linear(), linear()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        branch = self.fc(x)
        y = x + branch
        return (y, branch) if self.how == "returned" else self.head(branch) * y


class Experts(nn.Module):
    """Sends every token to one of three experts; which one depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(WIDTH, 3), nn.ModuleList([linear() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        weight, choice = self.router(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            (places,) = torch.where(choice == i)
            if len(places):
                out.index_add_(0, places, expert(flat[places]) * weight[places, None])
        return out.reshape(x.shape)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.moe = norm(), Experts()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.moe(self.norm(x))


class Restless(nn.Module):
    """Changes all that a forward pass can change, and looks at numbers if told to."""

    def __init__(self, *, looks: bool = False) -> None:
        super().__init__()
        self.fc, self.bn, self.drop = linear(), nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("replaced", torch.zeros(1))
        self.looks = looks
        self.count = 0
        self.cache: dict[str, Any] = {"old": 1}
        self.log: list[Any] = ["old"]
        self.seen: set[int] = {7}
        self.nested: dict[str, list[int]] = {"log": [1]}
        self.memory = torch.zeros(WIDTH)  # a tensor, but no buffer
        self.temporary = True

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.rand_like(x) + random.random() + np.random.rand()
        if self.looks and bool(x.sum() > 1e9):
            return x
        self.count += 1
        self.last = x
        self.cache["new"] = x
        self.cache.pop("old", None)
        self.log.append(x)
        self.seen.add(len(self.log))
        self.nested["log"].append(2)
        self.memory += 1
        self.steps += 1
        self.replaced = self.replaced + 1
        self.extra = nn.Linear(2, 2)
        self.register_buffer("late", torch.ones(1))
        self.drop.p = 0.9
        if hasattr(self, "temporary"):
            del self.temporary
        self.train()
        return x + self.drop(self.fc(self.bn(x)))
