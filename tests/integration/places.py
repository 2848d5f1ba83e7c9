"""Where the parameters of a model lie, seen from its gates: a second opinion, made from the trace alone."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from rezero.surgery.find import TIES
from rezero.surgery.linear import is_matrix, is_norm
from rezero.surgery.sites import Residuals
from rezero.surgery.sums import additions
from rezero.surgery.traced import Op, Trace, Value

__all__ = ["places", "read_by_hand", "unread_by_module"]

Places = dict[str, set[str]]

_BY_HAND = {  # a model's class and its parameters, and what their addition is by its source
    "FunAsrNanoEncoder": (r"layers\.0\.self_attn\.[qko]_proj\.", "the first layer has no skip around its attention"),
    "FunAsrNanoModel": (
        r"audio_tower\.layers\.0\.self_attn\.[qko]_proj\.",
        "the first layer has no skip around its attention",
    ),
    "TNT": (r"blocks\.\d+\.proj\.", "pixels are added to patches: two streams"),
    "HighResolutionNet": (r"stage\d\.\d\.fuse_layers\.", "one resolution is added to another: two streams"),
    "ByobNet": (r"stages\.\d\.\d\.self_attn\.kv\.", "scores by content and by position, in a block without a skip"),
    "DFineModel": (r"decoder\.layers\.\d\.encoder_attn\.sampling_offsets\.", "offsets of the places that are read"),
    "Deimv2Model": (r"decoder\.layers\.\d\.encoder_attn\.sampling_offsets\.", "offsets of the places that are read"),
}

_NOT_IN_FORWARD = {  # a model's class and its parts that its forward pass does not train, by its source
    "CsmForConditionalGeneration": ("codec_model", "makes codes from sound, without gradients"),
    "DFineModel": (r"decoder\.lqe_layers", "called where a detection head is given"),
    "Deimv2Model": (r"decoder\.lqe_layers", "called where a detection head is given"),
    "Emu3Model": (r"vqmodel\.decoder", "called to decode pictures, without gradients"),
    "GlmImageModel": ("visual", "makes codes from pictures, which become tokens"),
    "JanusModel": ("vqmodel", "called to decode pictures"),
    "MusicgenForConditionalGeneration": ("audio_encoder", "makes codes from sound, and sound from codes"),
    "MusicgenMelodyForConditionalGeneration": ("audio_encoder", "makes sound from codes"),
    "Nemotron3_5TranscribeModel": ("word_timestamp_encoder", "called by a method of its own"),
    "RagModel": ("question_encoder", "called where a retriever is given, which chooses passages"),
    "VibeVoiceForConditionalGeneration": (
        r"model\.(audio_tower\.decoder|diffusion_head|semantic_tokenizer_encoder)",
        "called in generation, or never",
    ),
    "XcodecModel": ("decoder_semantic", "never called"),
}


def places(model: Any, traced: Trace, found: Residuals) -> Places:
    """Sort the names of a model's parameters by place.

    ``branch``: matters only through a gate. ``shortcut`` and ``refused``: as the finder says. ``trunk``: stem,
    transitions, norms and head. ``unexplained``: a matrix in a layer that has gates, but behind none of them, and on
    one side of an addition whose other side comes past it: what a branch without a gate looks like. ``unread``: not
    read on this example.
    """
    leaves = {branch.leaf for branch in found.branches}
    gated = {call.output for call in traced.calls if call.name in leaves and call.output is not None}
    inside = _behind_gates(traced, gated)
    readers: dict[str, set[Op]] = {}
    for value in traced.values:
        if value.parameter and value.users:
            readers.setdefault(value.parameter, set()).update(value.users)
    sorted_: Places = {"branch": {name for name, ops in readers.items() if ops <= inside}}
    sorted_["branch"] |= found.parameters["branch"] & readers.keys()  # scales between a gate and its addition
    for place in ("shortcut", "refused"):
        sorted_[place] = set(found.parameters.get(place, ())) - sorted_["branch"]
    rest = readers.keys() - set().union(*sorted_.values())
    bypassed = _bypassed(traced, found)
    sorted_["unexplained"] = {name for name in rest if not _explained(model, name, readers[name], leaves, bypassed)}
    sorted_["trunk"] = rest - sorted_["unexplained"]
    sorted_["unread"] = {name for name, _ in model.named_parameters()} - readers.keys()
    return sorted_


def _behind_gates(traced: Trace, gated: set[Value]) -> set[Op]:
    """Return the operations whose results matter only through the output of a gated module."""
    inside: set[Op] = set()
    for op in reversed(traced.ops):
        free = [value for value in op.outputs if value not in gated]
        if all(not value.escapes and inside.issuperset(value.users) for value in free):
            inside.add(op)
    return inside


def _explained(model: Any, name: str, readers: set[Op], leaves: set[str], bypassed: Callable[[Op, str], bool]) -> bool:
    owner = name.rpartition(".")[0]
    layer = next((each for each in _layers(model, owner) if any(leaf.startswith(f"{each}.") for leaf in leaves)), None)
    if layer is None or not is_matrix(model.get_parameter(name).shape) or is_norm(model.get_submodule(owner)):
        return True
    return not any(bypassed(op, layer) for op in readers)


def _layers(model: Any, name: str) -> Iterator[str]:
    """Yield the modules around one that are entries of a list of modules, the innermost first."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if parts[end - 1].isdecimal() and hasattr(model.get_submodule(".".join(parts[: end - 1])), "__getitem__"):
            yield ".".join(parts[:end])


def _bypassed(traced: Trace, found: Residuals) -> Callable[[Op, str], bool]:
    """Return what says whether an operation is on one side of an addition in a layer, and the other comes past it.

    Both come from what entered the layer, or was made in it. A sum of two ways with as many matrices has no skip: such
    are convolutions of several sizes side by side.
    """
    known = {(site.name, *place[:2]) for site in found for place in site.added}
    known |= {(each.name, *each.place) for each in found.left_out if each.reason == TIES}
    others = [
        op
        for op, place in additions(traced).items()
        if (op.call.name, *place) not in known and all(side.data for side in op.inputs[:2])
    ]
    entered: dict[str, list[Value]] = {}

    def bypassed(op: Op, layer: str) -> bool:
        made = op.outputs[-1]
        if layer not in entered:
            entered[layer] = _entering(traced, layer)
        sources = [value for value in entered[layer] if made.descends_from(value)]
        return any(
            (one.descends_from(made) or one is made)
            and not (other.descends_from(made) or other is made)
            and any(other is value or other.descends_from(value) for value in sources)
            for addition in others
            if f"{addition.call.name}.".startswith(f"{layer}.")
            for one, other in (addition.inputs[:2], addition.inputs[1::-1])
        )

    return bypassed


def _entering(traced: Trace, layer: str) -> list[Value]:
    """List the values that are read or made in a layer."""
    inside = (op for op in traced.ops if f"{op.call.name}.".startswith(f"{layer}."))
    return [value for value in {value for op in inside for value in op.inputs + op.outputs} if value.data]


def read_by_hand(model: Any, names: set[str]) -> str:
    """Say what the unexplained parameters of a model are, if its source was read for it, and they are all that it is.

    Args:
        model: The model.
        names: Their names.

    Returns:
        What they do; nothing if nobody knows.
    """
    pattern, reason = _BY_HAND.get(type(model).__name__, ("(?!)", ""))
    return reason if names and all(re.match(pattern, name) for name in names) else ""


def unread_by_module(model: Any, traced: Trace, unread: set[str]) -> tuple[Counter[str], set[str]]:
    """Count the unread parameters by module.

    Returns:
        The outermost module that was not called, or the owner that was, with its count; and those of them that were not
        called although they hold a stack of layers: an encoder that the example did not reach. Those that the class's
        forward pass does not train are no such stacks.
    """
    called = {call.name for call in traced.calls}
    counts: Counter[str] = Counter()
    for name in unread:
        parts = name.split(".")[:-1]
        prefixes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        outer = next(
            (each for each in prefixes if not any(c == each or c.startswith(f"{each}.") for c in called)), None
        )
        counts[outer or ".".join(parts)] += 1
    stacks = {name for name in counts if name and name not in called and _has_stack(model.get_submodule(name))}
    pattern, _ = _NOT_IN_FORWARD.get(type(model).__name__, ("(?!)", ""))
    return counts, {name for name in stacks if not re.fullmatch(pattern, name)}


def _has_stack(module: Any) -> bool:
    lists = [each for each in module.modules() if type(each).__name__ == "ModuleList" and len(each) > 0]
    return any(sum(1 for _ in each[0].modules()) > 4 for each in lists)
