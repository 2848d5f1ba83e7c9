"""Make the configuration of any model type of transformers small, and keep it consistent.

All widths are divided by one number, so that sums, products and equalities between them stay; depths are cut to two
layers, or to one of each kind. Which numbers are widths is told by their names.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["SCALES", "Scale", "tiny"]


class Scale(NamedTuple):
    """What the features of a head and the number of heads are divided by."""

    features: int
    heads: int

    @property
    def width(self) -> int:
        """What widths are divided by."""
        return self.features * self.heads


SCALES = tuple(Scale(*each) for each in ((8, 4), (4, 4), (8, 1), (2, 4), (4, 1), (1, 8), (2, 1), (1, 1)))
_MANY = 4  # at most that many kinds of layers, experts and entries of a list of layers

_DEPTH = re.compile(
    r"(^|_)(num|n|l|r|x|encoder|decoder|hidden|attention|fusion|dec)_?layers?(_per_(stack|block))?$|(num|n)_blocks$"
    r"|^layers$|(^|_)depths?$|blocks_per_stage|self_attends_per_block"
)
_OF_LAYERS = re.compile(
    r"ind(ex|exe|ice)s$|_idxs?$|(attention|attn|extract|only|target|local)_layers$|attention_blocks"
)
_HEADS = re.compile(r"heads?$|heads?_per|heads_(ipa|side)")
_HEAD_FEATURES = re.compile(
    r"head_(dim|size|width)$|head_features|d_kv$|d_head$|dim_head$|rotary_dim$|mrope_section|kv_channels$"
)
_WIDTH = re.compile(
    r"width$|(^|_)dims?($|_)|embd$|channels?$|d_(model|inner|ff|embed)$|dff$|hidden_|intermediate|ffn|rank$|filters$|embed"
    r"|(conv|output|fpn|feature|coordinate|shape|state|feat|bottleneck|projection|proj|channel|emb|ff)_sizes?$"
    r"|units$|planes$|upsample_groups$|out_features|attention_size|pos_feats$"
)
_NOT_WIDTH = re.compile(
    r"vocab|image_|patch_(?!embeds)|pos_emb_|window|kernel|token|position|(^|_)num_(?!pos_feats)|max_|stride|ratio|(?<!upsample_)group|grid|seq|ids?$|act(ivation)?$"
    r"|temporal|_rate|factor|scale|drop|type|layers?$"
)
_OF_INPUT = re.compile(r"^(in|num|input|audio)_channels$")
_EXPERTS = re.compile(r"(num|n)_(\w+_)?experts$|expert_num$")
_AT_MOST_TWO = re.compile(
    r"experts_per_tok(en)?$|(?<!index_)top_?k$|moe_k$|_(period|interval|frequency|pattern|sparse_step)$"
)
_ONE = re.compile(
    r"first_k_dense|num_dense_layers|_offset$|start_index$|n_shared_experts|topk_group|^n_group$|expert_group$"
)
_TOKENS = re.compile(r"_(token|start|end|bos|eos|pad)_(ids?|index)$|_(bos|eos|pad)_id$|^(boi|eoi|boa|eoa)_")
_VOCABULARY = 1000
_RESOLUTION = re.compile(r"^(image|img)_size$")
_COMMON = frozenset(
    ("transformers_version", "architectures", "id2label", "label2id", "problem_type", "dtype", "return_dict")
)


def tiny(default: Any, scale: Scale, exceptions: Mapping[str, Any]) -> Any:
    """Build a small configuration of the same class.

    Args:
        default: A configuration.
        scale: What widths are divided by.
        exceptions: Field to value, where no rule works, or to what makes it of the scale; a dictionary for a
            configuration inside.

    Returns:
        The small configuration.
    """
    fields = {name: (own, value) for name, own, value in _fields(default)}
    layers = _Layers(default, {name: value for name, (_, value) in fields.items()})
    given = dict(layers.lists)
    for name, (own, value) in sorted(fields.items(), key=lambda field: field[0] != "text_config"):
        if name in exceptions and not hasattr(value, "to_json_string"):
            told = exceptions[name]
            given[name] = told(scale) if callable(told) else told
        elif hasattr(value, "to_json_string"):
            inner = exceptions.get(name, {})
            if "text_config" in given and "out_hidden_size" in vars(value) and name != "text_config":
                inner = {"out_hidden_size": given["text_config"].hidden_size} | inner
            given[name] = inner if hasattr(inner, "to_json_string") else tiny(value, scale, inner)
        elif name not in given and (own != value or (own is not None and value is not None)):
            given[name] = _small(name, value, scale, layers)
    given |= {name: value for name, value in exceptions.items() if name not in fields}
    if layers.stages and "out_indices" not in exceptions:
        given["out_indices"] = layers.stages
    if layers.overrides:
        given["per_layer_config"] = {
            index: {name: _small(name, value, scale, layers) for name, value in values.items()}
            for index, values in layers.overrides.items()
        }
    return type(default)(**given)


def _fields(config: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields of a configuration: name, what the class itself gives it, value."""
    plain = _plain(type(config))
    config.allow_global_per_layer_attribute_access = True
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name, field in fields.items():
        if field.init and not name.startswith("_") and name not in _COMMON:
            own = field.default if field.default is not dataclasses.MISSING else None
            value = getattr(config, name, None)
            inner = hasattr(value, "to_json_string")
            if own is None and not inner and plain is not None and getattr(plain, name, None) == value:
                own, value = (value, value) if isinstance(value, dict) else (None, None)
            yield name, own, value
    for name, value in vars(config).items():  # given by a configuration around it
        if name not in fields and not name.startswith("_") and name not in vars(plain or config):
            yield name, None, value


def _plain(config_class: Any) -> Any:
    """Build a configuration of a class without arguments; return None where it wants some."""
    try:
        plain = config_class()
    except Exception:
        return None
    plain.allow_global_per_layer_attribute_access = True
    return plain


class _Layers:
    """Which layers stay of a configuration with a list of them.

    Attributes:
        before: The depth as it was; 0 if the configuration names none.
        after: The depth as it will be.
        lists: The fields with one entry a layer.
        overrides: What is different in some layers.
        stages: Which layers a backbone returns, if it was told.
    """

    def __init__(self, config: Any, fields: Mapping[str, Any]) -> None:
        names = (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "depth",
            "encoder_layers",
            "layers",
            "num_blocks",
        )
        found = (fields.get(name) for name in names)
        self.before: int = next((value for value in found if type(value) is int), 0)
        derived = {name: getattr(config, name) for name in fields}
        lists = {name: value for name, value in derived.items() if self._one_each(value)}
        told = list(getattr(config, "out_indices", None) or ()) if hasattr(config, "stage_names") else []
        overrides = getattr(vars(config).get("_heterogeneity_spec"), "per_layer_overrides", {})
        telling = [value for value in lists.values() if len(set(value)) <= _MANY]
        kinds: dict[Any, int] = {}
        for index in range(self.before):
            kinds.setdefault((tuple(value[index] for value in telling), str(overrides.get(index))), index)
        chosen = sorted(kinds.values())[:_MANY]
        needed = [len(told), *(len(v) + 1 for n, v in fields.items() if self.is_of_layers(n, v) and len(v) <= _MANY)]
        others = (index for index in range(self.before) if index not in chosen)
        while len(chosen) < min(self.before, max(2, *needed)):
            chosen.append(next(others))
        chosen.sort()
        self.after = len(chosen)
        kept = {name: value for name, value in lists.items() if fields[name] is not None or len(set(value)) > 1}
        self.lists = {name: type(value)(value[index] for index in chosen) for name, value in kept.items()}
        self.overrides = {new: overrides[old] for new, old in enumerate(chosen) if old in overrides}
        deep = bool(told) and len(config.stage_names) == self.before + 1
        self.stages = list(range(self.after - len(told) + 1, self.after + 1)) if deep else told

    def _one_each(self, value: Any) -> bool:
        flat = isinstance(value, list | tuple) and not any(isinstance(each, list | tuple | dict) for each in value)
        return flat and len(value) == self.before > 1

    def is_of_layers(self, name: str, value: Any) -> bool:
        """Return whether a field lists some of the layers by number."""
        plain = isinstance(value, list | tuple) and len(value) > 0 and bool(_OF_LAYERS.search(name))
        return plain and all(type(each) is int and 0 <= each <= self.before for each in value)

    def some(self, value: Any) -> Any:
        """Return as many of the layers that stay."""
        count = self.after if len(value) == self.before else len(value) if len(value) < self.after else 1
        return type(value)(range(self.after - count, self.after))


def _small(name: str, value: Any, scale: Scale, layers: _Layers) -> Any:
    """Make one value of a configuration small."""
    if isinstance(value, dict):
        return {key: _small(str(key), each, scale, layers) for key, each in value.items()}
    if layers.is_of_layers(name, value):
        return layers.some(value)
    if isinstance(value, list | tuple):
        return type(value)(_small(name, each, scale, layers) for each in value)
    return value if type(value) is not int or value < 1 else _number(name, value, scale, layers)


def _number(name: str, value: int, scale: Scale, layers: _Layers) -> int:
    if name.endswith("vocab_size"):
        return min(value, _VOCABULARY)
    if _TOKENS.search(name):
        return value if value < _VOCABULARY else _VOCABULARY // 2 + value % (_VOCABULARY // 2 - 1)
    if name == "max_source_positions":
        return min(value, 40)
    if name == "num_queries":
        return min(value, 20)
    if _RESOLUTION.search(name):
        return value // 4 if value > 600 else value
    if _ONE.search(name):
        return 1
    if _EXPERTS.search(name):
        return min(value, _MANY)
    if _AT_MOST_TWO.search(name):
        return min(value, 2)
    if _DEPTH.search(name):
        return layers.after if value == layers.before else min(value, 2)
    if _HEAD_FEATURES.search(name):
        return max(1, value // scale.features)
    if _HEADS.search(name):
        return max(1, value // scale.heads)
    if _WIDTH.search(name) and not _NOT_WIDTH.search(name) and value >= 16:
        return max(1, value // (scale.width))
    return value
