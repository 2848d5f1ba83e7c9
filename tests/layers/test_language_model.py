"""The causal Transformer over bytes: one formula an arm, positions, cache and generation."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rezero import Gate, gates, param_groups
from rezero.layers import KVCache, LanguageModel
from rezero.layers.decoder import CausalAttention, DecoderLayer, FeedForward
from rezero.layers.positions import rotary_table, rotate
from rezero.layers.residuals import RESIDUALS
from rezero.optim import count_branches

F64 = torch.float64
ARMS = list(RESIDUALS)
GATED = ("rezero", "skipinit")
D, DEPTH, HEADS, V, FF = 12, 2, 3, 17, 2

every_arm = pytest.mark.parametrize("residual", ARMS)
every_position = pytest.mark.parametrize("positions", ["rotary", "learned"])


def build(residual: str = "rezero", **options: Any) -> LanguageModel:
    options = {"vocab_size": V, "ff_mult": FF, "max_length": 20, **options}
    return LanguageModel(D, DEPTH, HEADS, residual=residual, **options)


def scramble_(module: nn.Module) -> Any:
    """Give every parameter random values, so that no norm, scale or gate is at its neutral start."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def text(batch: int, length: int) -> Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(7))


# The formulas


Parameters = dict[str, Tensor]
Branch = Callable[[str, Tensor], Tensor]


def norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def rotated(x: Tensor) -> Tensor:
    """Rotary positions as products of complex numbers: feature i is the real part, i + C / 2 the imaginary one."""
    half = x.shape[-1] // 2
    turns = [[t / 10_000 ** (2 * i / x.shape[-1]) for i in range(half)] for t in range(x.shape[-2])]
    angle = torch.tensor(turns, dtype=x.dtype)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), -1)


def attention(p: Parameters, b: str, x: Tensor, *, rotary: bool) -> Tensor:
    batch, length, dim = x.shape
    q, k, v = (
        linear(p, f"{b}.{name}", x).reshape(batch, length, HEADS, dim // HEADS).permute(0, 2, 1, 3)
        for name in ("query", "key", "value")
    )
    q, k = (rotated(q), rotated(k)) if rotary else (q, k)
    scores = q @ k.mT / math.sqrt(dim // HEADS)
    future = torch.arange(length)[None, :] > torch.arange(length)[:, None]
    context = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    return linear(p, f"{b}.out", context.permute(0, 2, 1, 3).reshape(batch, length, dim))


def feed_forward(p: Parameters, b: str, x: Tensor) -> Tensor:
    h = linear(p, f"{b}.linear1", x)
    return linear(p, f"{b}.linear2", 0.5 * h * (1 + torch.erf(h / math.sqrt(2))))


# x <- one block of each arm; b is the block's name, f its branch from the name of its parameters.
BLOCKS: dict[str, Callable[[Parameters, str, Branch, Tensor], Tensor]] = {
    "plain": lambda _, b, f, x: f(b, x),
    "plain-norm": lambda p, b, f, x: norm(p, f"{b}.norm", f(f"{b}.branch", x)),
    "residual": lambda _, b, f, x: x + f(f"{b}.branch", x),
    "post-norm": lambda p, b, f, x: norm(p, f"{b}.post_norm", x + f(f"{b}.branch", x)),
    "pre-norm": lambda p, b, f, x: x + f(f"{b}.branch", norm(p, f"{b}.pre_norm", x)),
    "rezero": lambda p, b, f, x: x + p[f"{b}.gate.alpha"] * f(f"{b}.branch", x),
    "skipinit": lambda p, b, f, x: x + p[f"{b}.gate.alpha"] * f(f"{b}.branch", x),
    "layerscale": lambda p, b, f, x: x + p[f"{b}.scale.scale"] * f(f"{b}.branch", norm(p, f"{b}.pre_norm", x)),
    "fixup": lambda p, b, f, x: (
        x + p[f"{b}.scale.0.scale"] * f(f"{b}.branch", x + p[f"{b}.pre_norm.bias"]) + p[f"{b}.scale.1.bias"]
    ),
    "deepnorm": lambda p, b, f, x: norm(p, f"{b}.post_norm", (2 * DEPTH) ** 0.25 * x + f(f"{b}.branch", x)),
    "rezero layer": lambda p, b, f, x: x + p[f"{b.rpartition('.')[0]}.gate.alpha"] * f(b, x),
}


def written(p: Parameters, arm: str, tokens: Tensor, *, rotary: bool) -> Tensor:
    """The network written out by hand from its parameters."""
    x = p["embedding.weight"][tokens]
    if not rotary:
        x = x + p["positions.weight"][: tokens.shape[1]]
    for i in range(DEPTH):
        x = BLOCKS[arm](p, f"layers.{i}.attention", lambda b, h: attention(p, b, h, rotary=rotary), x)
        x = BLOCKS[arm](p, f"layers.{i}.feed_forward", lambda b, h: feed_forward(p, b, h), x)
    if arm in ("pre-norm", "layerscale"):
        x = norm(p, "norm", x)
    return x @ p["output.weight"].T


def test_every_arm_has_a_formula() -> None:
    """The formulas above are those of all arms, each of which is defined for this family."""
    assert set(BLOCKS) == {*ARMS, "rezero layer"}


@every_position
@pytest.mark.parametrize("arm", BLOCKS)
def test_network_is_its_formula(arm: str, positions: str) -> None:
    """Logits and gradients are those of the arm's formula, and every parameter has its part in them."""
    residual, _, share = arm.partition(" ")
    model = scramble_(build(residual, positions=positions, share=share or "sublayer").double())
    p, tokens = dict(model.named_parameters()), text(4, 7)
    results = []
    for logits in (model(tokens), written(p, arm, tokens, rotary=positions == "rotary")):
        loss = logits.log_softmax(-1)[..., 3].sum()
        results.append((logits, torch.autograd.grad(loss, list(p.values()))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)
    assert all(g.any() for g in results[0][1])


def test_skipinit_is_rezero_here() -> None:
    """Without batch norm to replace, skipinit and rezero are the same network from the same seed."""
    states = []
    for residual in GATED:
        torch.manual_seed(1)
        states.append(build(residual).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@every_arm
def test_takes_bytes(residual: str) -> None:
    """uint8 tokens give the logits of the same int64 tokens."""
    model, tokens = scramble_(build(residual)), text(2, 5)
    assert torch.equal(model(tokens.to(torch.uint8)), model(tokens))


@every_position
@every_arm
def test_no_position_sees_a_later_one(residual: str, positions: str) -> None:
    """Changing a byte leaves the logits before it bitwise as they were, and changes those from it on."""
    model, tokens = scramble_(build(residual, positions=positions)), text(2, 9)
    other = tokens.clone()
    other[:, 5] = (other[:, 5] + 1) % V
    before, after = model(tokens), model(other)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


# Gates


@every_position
@pytest.mark.parametrize("share", ["sublayer", "layer"])
def test_closed_gates_leave_the_embedding(share: str, positions: str) -> None:
    """At the start the logits are the output layer's of the embedding, bitwise, in training with dropout too."""
    model, tokens = build(share=share, positions=positions, dropout=0.5), text(2, 5)
    x = model.embedding(tokens)
    x = x if model.positions is None else x + model.positions.weight[:5]
    assert torch.equal(model(tokens), model.output(x))


@pytest.mark.parametrize(("share", "count"), [("sublayer", 2 * DEPTH), ("layer", DEPTH)])
def test_shared_gates_count_as_two_branches(share: str, count: int) -> None:
    """One gate a branch or one a layer: param_groups sees L = 2 depth gated branches and each alpha once."""
    model = build(share=share)
    assert [gate.alpha.tolist() for gate in gates(model).values()] == [[0.0]] * count
    assert count_branches(model) == 2 * DEPTH
    (group,) = (g for g in param_groups(model, lr=1.0, weight_decay=0.0) if g["name"] == "gates")
    assert len(group["params"]) == count
    assert group["lr"] == 3 / (2 * DEPTH)


def test_a_shared_gate_is_equal_gates() -> None:
    """With the same alpha on both branches of each layer the two ways of sharing are the same function."""
    tied, apart = scramble_(build(share="layer").double()), build().double()
    for source, target in zip(tied.layers, apart.layers, strict=True):
        for name in ("attention", "feed_forward"):
            block = target.get_submodule(name)
            block.branch.load_state_dict(source.get_submodule(name).state_dict())
            block.gate.load_state_dict(source.gate.state_dict())
    apart.embedding.load_state_dict(tied.embedding.state_dict())
    apart.output.load_state_dict(tied.output.state_dict())
    torch.testing.assert_close(apart(text(2, 6)), tied(text(2, 6)), rtol=1e-14, atol=1e-14)


# Starts


@pytest.mark.parametrize("when", ["constructed", "reset"])
@every_arm
def test_start_has_its_statistics(residual: str, when: str) -> None:
    """Xavier-uniform with the gains of Fixup and DeepNorm on the path of each branch, embeddings by gate, biases 0."""
    dim, depth = 96, 3
    model = LanguageModel(dim, depth, 4, residual=residual, positions="learned", max_length=100)
    if when == "reset":
        scramble_(model)
        model.reset_parameters()
    first, last = {"fixup": ((2 * depth) ** -0.5, 0.0), "deepnorm": ((8 * depth) ** -0.25,) * 2}.get(residual, (1, 1))
    gains = {"query": 1, "key": 1, "value": first, "out": last, "linear1": first, "linear2": last}
    seen = set()
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear):
            kind = name.rpartition(".")[2]
            gain = gains.get(kind, float(residual != "fixup"))
            assert_uniform(part.weight, gain * math.sqrt(6 / sum(part.weight.shape)))
            assert part.bias is None if kind == "output" else not part.bias.any()
            seen.add(kind)
        if isinstance(part, nn.Embedding) and residual in GATED:
            assert_uniform(part.weight, 1 / dim)
        elif isinstance(part, nn.Embedding):
            assert part.weight.std().item() == pytest.approx(dim**-0.5, rel=0.03)
            assert (part.weight.abs() > 3 * dim**-0.5).any()  # a normal and no uniform distribution
        if isinstance(part, nn.LayerNorm):
            assert torch.equal(part.weight, torch.ones(dim))
            assert not part.bias.any()
    assert seen == {*gains, "output"}
    for name, parameter in model.named_parameters():
        if name.endswith("scale.scale"):  # CaiT's start for 3 layers, and for 18 of them, though they have 36 branches
            assert torch.equal(parameter, torch.full((dim,), 0.1))
        if name.endswith(("pre_norm.bias", "scale.1.bias")) and residual == "fixup":
            assert torch.equal(parameter, torch.zeros(1))
        if name.endswith("scale.0.scale"):
            assert torch.equal(parameter, torch.ones(1))


def assert_uniform(tensor: Tensor, bound: float) -> None:
    assert tensor.abs().max() <= bound
    assert tensor.abs().max() >= 0.98 * bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


@pytest.mark.parametrize(("depth", "start"), [(18, 0.1), (19, 1e-5), (25, 1e-6)])
def test_layer_scale_starts_by_the_number_of_layers(depth: int, start: float) -> None:
    """CaiT's depth counts layers of two branches, so 18 layers still start at 0.1."""
    model = LanguageModel(2, depth, 1, residual="layerscale", vocab_size=2)
    scales = [p for name, p in model.named_parameters() if name.endswith("scale.scale")]
    assert len(scales) == 2 * depth
    assert all(torch.equal(scale, torch.full((2,), start)) for scale in scales)


@every_arm
def test_no_arm_starts_dead(residual: str) -> None:
    """Within four steps of SGD every parameter leaves its start."""
    model = build(residual)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    tokens = torch.arange(V).repeat(2, 2)
    for _ in range(4):
        optimizer.zero_grad()
        model(tokens)[..., 3].logsumexp(-1).sum().mul(-0.1).backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_reset_draws_anew() -> None:
    """Two resets give different weights, the same seed the same, and no two layers start equal."""
    model = build()
    draws = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        model.reset_parameters()
        draws.append({name: p.clone() for name, p in model.named_parameters() if name.endswith("weight")})
    assert all(torch.equal(draws[0][key], draws[2][key]) for key in draws[0])
    assert not any(torch.equal(draws[0][key], draws[1][key]) for key in draws[0])
    assert len({weight.sum().item() for weight in draws[0].values()}) == len(draws[0])


@every_position
def test_has_its_parameter_count(positions: str) -> None:
    """Twice the vocabulary, four squares of attention, two rectangles of feed-forward, and what each arm adds."""
    attention, feed_forward = 4 * (D * D + D), 2 * FF * D * D + FF * D + D
    network = 2 * V * D + DEPTH * (attention + feed_forward) + (20 * D if positions == "learned" else 0)
    each = {"plain-norm": 2 * D, "post-norm": 2 * D, "pre-norm": 2 * D, "deepnorm": 2 * D, "layerscale": 3 * D}
    each |= {"rezero": 1, "skipinit": 1, "fixup": 3}
    for residual in ARMS:
        final = 2 * D if residual in ("pre-norm", "layerscale") else 0
        count = sum(p.numel() for p in build(residual, positions=positions).parameters())
        assert count == network + 2 * DEPTH * each.get(residual, 0) + final, residual


# Positions


def test_rotation_depends_on_the_distance_alone() -> None:
    """The product of a query and a key rotated by their places is the same wherever the pair stands."""
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=F64)
    products = {}
    for place in (0, 3, 1000):
        for distance in (0, 1, 17):
            later, earlier = (rotary_table(1, 8, start=place + d, dtype=F64) for d in (distance, 0))
            products[place, distance] = (rotate(q, later) * rotate(k, earlier)).sum().item()
    for distance in (0, 1, 17):
        assert products[3, distance] == pytest.approx(products[0, distance], rel=1e-9)
        assert products[1000, distance] == pytest.approx(products[0, distance], rel=1e-9)
    assert len({round(product, 6) for product in products.values()}) == 3


def test_rotation_keeps_lengths_and_dtypes() -> None:
    """A rotation changes no norm, begins with the identity, and gives the dtype of what it rotates."""
    x = torch.randn(2, 3, 5, 6, dtype=F64)
    y = rotate(x, rotary_table(5, 6, dtype=F64))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-14, atol=0)
    assert torch.equal(y[:, :, 0], x[:, :, 0])
    assert rotate(x.bfloat16(), rotary_table(5, 6)).dtype == torch.bfloat16


def test_tables_continue_each_other() -> None:
    """A table that starts later is the rest of the one that starts at 0, bitwise."""
    for whole, rest in zip(rotary_table(9, 4), rotary_table(5, 4, start=4), strict=True):
        assert torch.equal(whole[4:], rest)


@every_position
def test_the_order_of_bytes_matters(positions: str) -> None:
    """Exchanging two earlier bytes changes what the last position says."""
    model = scramble_(build(positions=positions))
    a, b = model(torch.tensor([[1, 2, 3], [2, 1, 3]]))[:, -1]
    assert (a - b).abs().max() > 1e-3


def test_rotary_positions_have_no_limit() -> None:
    """max_length bounds learned positions only."""
    assert build(max_length=2)(text(1, 50)).shape == (1, 50, V)


# Dropout


def test_dropout_of_everything_silences_the_branches() -> None:
    """With dropout 1 a training network has branches of zeros, and evaluation does not drop."""
    model, tokens = scramble_(build("residual", dropout=1.0)), text(2, 5)
    without = build("residual")
    without.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens), model.output(model.embedding(tokens)))
    assert torch.equal(model.eval()(tokens), without(tokens))


@pytest.mark.parametrize("branch", [CausalAttention(D, HEADS, dropout=0.5), FeedForward(D, 24, dropout=0.5)])
def test_branches_drop_in_training_only(branch: nn.Module) -> None:
    """Two training calls differ and zero about half of the entries, two evaluations do not differ."""
    x = torch.randn(8, 20, D)
    first, second = branch.train()(x), branch(x)
    assert not torch.equal(first, second)
    assert 0.4 < (first == 0).float().mean() < 0.6
    branch.eval()
    assert torch.equal(branch(x), branch(x))


# Cache


CHUNKS = {"prompt, then one by one": (4, 1, 1, 1, 1, 1), "one by one": (1,) * 9, "chunks": (2, 3, 1, 3), "whole": (9,)}


@every_position
@every_arm
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (F64, 1e-10)], ids=["float32", "float64"])
def test_cached_is_uncached(
    chunks: tuple[int, ...], residual: str, positions: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Read in any chunks through a cache, a sequence gives the logits that it gives at once."""
    model, tokens = build(residual, positions=positions).to(dtype), text(3, sum(chunks))
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.3)
    cache, logits = model.new_cache(), []
    for chunk in tokens.split(chunks, dim=1):
        logits.append(model(chunk, cache))
        assert cache.length == sum(part.shape[1] for part in logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), model(tokens), rtol=tolerance, atol=tolerance)


def test_shared_gates_take_a_cache() -> None:
    """share='layer' continues a cache as well."""
    model, tokens = scramble_(build(share="layer").double()), text(2, 6)
    cache = model.new_cache()
    logits = torch.cat([model(tokens[:, :4], cache), model(tokens[:, 4:], cache)], dim=1)
    torch.testing.assert_close(logits, model(tokens), rtol=1e-10, atol=1e-10)


def test_caches_are_apart() -> None:
    """Two caches of one model hold two texts, and a call without a cache touches neither."""
    model, one, two = scramble_(build().double()), text(1, 6), text(2, 6)[1:]
    caches = [model.new_cache(), model.new_cache()]
    for tokens, cache in zip((one, two), caches, strict=True):
        model(tokens[:, :5], cache)
    model(two)
    for tokens, cache in zip((one, two), caches, strict=True):
        torch.testing.assert_close(model(tokens[:, 5:], cache)[:, 0], model(tokens)[:, 5], rtol=1e-10, atol=1e-10)


def test_a_new_cache_is_empty() -> None:
    """A cache starts with no positions of no batch, one entry a layer."""
    cache = build().new_cache()
    assert (cache.length, cache.batch, len(cache.layers)) == (0, None, DEPTH)


def test_refuses_foreign_caches_and_leaves_them() -> None:
    """A cache of another depth or batch, or one that would grow too long, is an error before it is touched."""
    model = build(positions="learned", max_length=6)
    cache = model.new_cache()
    model(text(2, 4), cache)
    with pytest.raises(ValueError, match=r"the cache holds 2 sequences, got 3: .* model\.new_cache\(\)"):
        model(text(3, 1), cache)
    with pytest.raises(ValueError, match=r"learned positions end at max_length = 6: got a sequence of 7; shorten it"):
        model(text(2, 3), cache)
    assert (cache.length, cache.batch) == (4, 2)
    with pytest.raises(ValueError, match=r"the cache is for 3 layers, the model has 2: use model\.new_cache\(\)"):
        model(text(2, 1), KVCache(3))
    with pytest.raises(ValueError, match="depth must be at least 1: got 0"):
        KVCache(0)


FOREIGN: dict[str, tuple[LanguageModel, str]] = {
    "heads": (LanguageModel(D, DEPTH, 1, vocab_size=V), "3 heads of width 4 in torch.float32 on cpu, got 1 heads of w"),
    "width": (LanguageModel(6, DEPTH, HEADS, vocab_size=V), "in torch.float32 on cpu, got 3 heads of width 2 in torch"),
    "dtype": (build().double(), "torch.float32 on cpu, got 3 heads of width 4 in torch.float64 on cpu; begin with mod"),
}


@pytest.mark.parametrize(("other", "message"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("new", [1, 3], ids=str)
def test_refuses_a_cache_of_other_heads_or_dtype(other: LanguageModel, message: str, new: int) -> None:
    """A cache that a model with other heads or another dtype has filled is a ValueError, and goes on in its own."""
    model, tokens = build(), text(2, 6)
    cache = model.new_cache()
    model(tokens[:, :3], cache)
    with pytest.raises(ValueError, match=f"^the cache belongs to another model, .* it holds .*{message}"):
        other(text(2, new), cache)
    torch.testing.assert_close(model(tokens[:, 3:], cache), model(tokens)[:, 3:])


@pytest.mark.parametrize("token", [-1, V], ids=str)
def test_a_token_outside_the_vocabulary_is_an_index_error(token: int) -> None:
    """On a CPU the embedding refuses a token that it has no row for."""
    with pytest.raises(IndexError, match="index out of range"):
        build()(torch.tensor([[0, token]]))


# Generation


@every_position
def test_greedy_takes_the_likeliest_byte(positions: str) -> None:
    """Temperature 0 is the argmax of the uncached logits, step by step, and keeps the prompt."""
    model, tokens = scramble_(build(positions=positions).double()), text(3, 4)
    result = model.generate(tokens, 6, temperature=0.0)
    for _ in range(6):
        tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(result, tokens)
    assert torch.equal(model.generate(text(3, 4), 6, top_k=1), tokens)
    assert torch.equal(model.generate(text(3, 4), 6, temperature=1e-300), tokens)


def test_sampling_is_repeatable() -> None:
    """Equal generators draw equal texts, whatever torch's own generator does, and unequal ones do not."""
    model = build()
    state = torch.get_rng_state()
    draws = [model.generate(text(2, 3), 12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("top_k", [None, 1000, 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_have_the_models_probabilities(temperature: float, top_k: int | None) -> None:
    """20,000 draws of one byte have the frequencies softmax(logits / temperature), of the top_k likeliest alone."""
    n, model = 20_000, scramble_(build())
    logits = model(text(1, 3))[0, -1].detach()
    kept = logits.topk(min(top_k or V, V)).indices
    expected = torch.zeros(V).scatter(0, kept, (logits[kept] / temperature).softmax(0))
    drawn = model.generate(text(1, 3).expand(n, 3), 1, temperature=temperature, top_k=top_k)[:, -1]
    frequency = drawn.bincount(minlength=V) / n
    assert not frequency[expected == 0].any()
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-4).all()


def test_generation_leaves_the_model_as_it_was() -> None:
    """Each module keeps its own mode, dropout is off meanwhile, and no gradient is recorded, after an error too."""
    model = scramble_(build("residual", dropout=0.9))
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    results = [model.generate(text(2, 3), 8, temperature=0.0) for _ in range(2)]
    assert torch.equal(*results)
    assert not results[0].requires_grad
    with pytest.raises(IndexError, match="out of range"):
        model.generate(torch.tensor([[V]]), 1)
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2


def test_generates_nothing_or_from_bytes() -> None:
    """No new tokens return the prompt, and a uint8 prompt gives int64."""
    prompt = text(2, 3)
    assert torch.equal(build().generate(prompt, 0), prompt)
    assert build().generate(prompt.to(torch.uint8), 2).dtype == torch.int64


def test_generation_may_fill_learned_positions() -> None:
    """The last byte is never read, so one more than max_length fits, and more is an error before any work."""
    model = build(positions="learned", max_length=6)
    assert model.generate(text(1, 3), 4).shape == (1, 7)
    with pytest.raises(ValueError, match="learned positions end at max_length = 6: got a sequence of 7"):
        model.generate(text(1, 3), 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0: got -1"),
        ({"temperature": -0.5}, "temperature must be a finite number, 0 or more: got -0.5"),
        ({"temperature": math.inf}, "temperature must be a finite number, 0 or more: got inf"),
        ({"temperature": math.nan}, "temperature must be a finite number, 0 or more: got nan"),
        ({"top_k": 0}, "top_k must be at least 1, or None for all tokens: got 0"),
        ({"prompt": torch.zeros(2, 0, dtype=torch.int64)}, "the prompt must have at least one token: got none"),
        ({"prompt": torch.zeros(3, dtype=torch.int64)}, r"tokens: expected shape \(batch, positions\), got \(3,\)"),
    ],
    ids=str,
)
def test_generate_refuses(options: dict[str, Any], message: str) -> None:
    """An argument out of range is an error that names it."""
    with pytest.raises(ValueError, match=message):
        build().generate(**{"prompt": text(1, 3), "max_new_tokens": 1, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 2.5}, r"^max_new_tokens must be a whole number: got 2\.5$"),
        ({"max_new_tokens": True}, "^max_new_tokens must be a whole number: got True$"),
        ({"top_k": 1.5}, r"^top_k must be a whole number, or None for all tokens: got 1\.5$"),
        ({"top_k": True}, "^top_k must be a whole number, or None for all tokens: got True$"),
    ],
    ids=str,
)
def test_generate_counts_in_whole_numbers(options: dict[str, Any], message: str) -> None:
    """A number of tokens that is a fraction or a truth value is a TypeError, and the model stays in its mode."""
    model = build()
    with pytest.raises(TypeError, match=message):
        model.generate(**{"prompt": text(1, 3), "max_new_tokens": 1, **options})
    assert model.training


# Parts


def test_a_decoder_layer_with_a_gate_counts_two_branches() -> None:
    """The gate of a layer counts its two additions, and without one the blocks add for themselves."""
    gate = Gate(init_value=0.5)
    layer = DecoderLayer(CausalAttention(D, HEADS), FeedForward(D, 24), gate)
    assert gate.branches == count_branches(layer) == 2
    x = torch.randn(2, 3, D)
    h = x + 0.5 * layer.attention(x)
    torch.testing.assert_close(layer(x), h + 0.5 * layer.feed_forward(h))
    bare = DecoderLayer(layer.attention, layer.feed_forward)
    assert torch.equal(bare(x), layer.feed_forward(layer.attention(x)))


@every_position
def test_compiles_for_every_length(positions: str) -> None:
    """One dynamic graph serves texts of every length."""
    model = scramble_(build(positions=positions))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for batch, length in [(2, 5), (3, 7), (4, 6)]:
        torch.testing.assert_close(compiled(text(batch, length)), model(text(batch, length)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@every_position
def test_exports_with_length_and_batch_open(positions: str) -> None:
    """An exported model takes other batches and lengths than its example."""
    model = scramble_(build(positions=positions)).eval()
    axes = {0: torch.export.Dim("batch", min=2, max=9), 1: torch.export.Dim("length", min=2, max=19)}
    program = torch.export.export(model, (text(3, 5),), dynamic_shapes={"tokens": axes})
    torch.testing.assert_close(program.module()(text(4, 9)), model(text(4, 9)))


# Device, dtype, errors


@every_arm
def test_takes_device_and_dtype(residual: str) -> None:
    """Parameters are made on the device and in the dtype asked for; gates are at least float32."""
    for share in ("sublayer", "layer") if residual in GATED else ("sublayer",):
        model = build(residual, positions="learned", share=share, device="meta", dtype=torch.bfloat16)
        for name, parameter in model.named_parameters():
            assert parameter.is_meta, name
            assert parameter.dtype == (torch.float32 if "alpha" in name else torch.bfloat16), name


@pytest.mark.parametrize("size", [0, -3], ids=str)
@pytest.mark.parametrize("which", ["dim", "depth", "num_heads", "vocab_size", "ff_mult", "max_length"])
def test_refuses_sizes_below_1(which: str, size: int) -> None:
    """A size below 1 is an error that names it."""
    with pytest.raises(ValueError, match=f"^{which} must be at least 1: got {size}"):
        LanguageModel(**{"dim": 8, "depth": 2, "num_heads": 2, which: size})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "dim must be a multiple of num_heads: got 12 and 5"),
        ({"num_heads": 4}, "rotary positions need heads of even width: got dim / num_heads = 3; .*'learned'"),
        ({"positions": "sine"}, "positions must be 'rotary' or 'learned': got 'sine'"),
        ({"dropout": 1.5}, "dropout must be a probability from 0 to 1: got 1.5"),
        ({"residual": "batchnorm"}, "no residual formula is called 'batchnorm': choose from plain, plain-norm,"),
        ({"share": "model"}, "share must be 'sublayer' or 'layer': got 'model'"),
        (
            {"share": "layer", "residual": "pre-norm"},
            "share='layer' shares a gate: pre-norm has none; choose from rezero, skipinit",
        ),
    ],
    ids=str,
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    """An argument out of range is an error that says what to choose."""
    with pytest.raises(ValueError, match=message):
        LanguageModel(**{"dim": 12, "depth": 2, "num_heads": 3, **options})


def test_learned_positions_take_odd_heads() -> None:
    """What the error about heads of odd width advises works."""
    assert LanguageModel(12, 1, 4, positions="learned")(text(1, 3)).shape == (1, 3, 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64], ids=str)
def test_refuses_tokens_that_are_no_integers(dtype: torch.dtype) -> None:
    """Tokens of another kind than integers are an error that shows the dtype."""
    with pytest.raises(TypeError, match=f"tokens must be integers, .*: got {dtype}"):
        build()(torch.zeros(1, 3, dtype=dtype))
    with pytest.raises(TypeError, match="tokens must be integers"):
        build().generate(torch.zeros(1, 3, dtype=dtype), 0)


def test_refuses_other_shapes() -> None:
    """Tokens without a batch axis are an error that shows the shape."""
    with pytest.raises(ValueError, match=r"tokens: expected shape \(batch, positions\), got \(3,\)"):
        build()(torch.zeros(3, dtype=torch.int64))


def test_learned_positions_end() -> None:
    """A sequence longer than max_length is an error that offers ways out."""
    model = build(positions="learned", max_length=6)
    assert model(text(1, 6)).shape == (1, 6, V)
    with pytest.raises(ValueError, match=r"learned positions end at max_length = 6: got a sequence of 7; .*'rotary'"):
        model(text(1, 7))


@pytest.mark.parametrize("residual", ["rezero", "pre-norm"])
def test_embedding_std_takes_the_place_of_the_arms_own(residual: str) -> None:
    """embedding_std is the deviation of the embeddings and of learned positions, for every arm, after a reset too."""
    model = LanguageModel(64, 1, 2, residual=residual, positions="learned", embedding_std=0.7)
    model.reset_parameters()
    assert model.positions is not None
    for embedding in (model.embedding, model.positions):
        assert embedding.weight.std().item() == pytest.approx(0.7, rel=0.03)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_embedding_std_must_be_a_scale(std: float) -> None:
    """A deviation that is not a finite number above 0 is refused."""
    with pytest.raises(ValueError, match="embedding_std must be a finite number above 0, or None: got"):
        LanguageModel(4, 1, 2, embedding_std=std)
