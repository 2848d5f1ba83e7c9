"""Example inputs for models of transformers, chosen by the parameters of their ``forward``."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from rezero.errors import UsageError

__all__ = ["Shapes", "candidates", "count_tokens", "example_inputs"]

Inputs = dict[str, Any]
_TOKENS, _SAMPLES, _FRAMES, _PIXELS, _TRIES = 8, 16_000, 64, 64, 40


def example_inputs(model: Any) -> Inputs:
    """Make small inputs of the shapes that a model of transformers takes.

    Args:
        model: The model.

    Returns:
        Keyword arguments on the model's device: the first that it runs on.

    Raises:
        UsageError: If it runs on none of the inputs that are known here.
    """
    problem: Exception | None = None
    untried: Inputs | None = None
    for inputs in candidates(model):
        try:
            with torch.no_grad():
                model(**inputs)
        except Exception as error:
            if "meta tensor" in str(error) and untried is None:  # it looks at numbers, and there are none
                untried = inputs
            problem = problem or error
        else:
            return inputs
    if untried is not None:
        return untried
    raise UsageError(
        f"no example input is known for {type(model).__name__}: give a function, as package.module:function"
        + (f" ({type(problem).__name__}: {' '.join(str(problem).split())[:300]})" if problem else "")
    ) from problem


def candidates(model: Any) -> Iterator[Inputs]:
    """Make inputs that a model of transformers may take, the most complete first.

    Args:
        model: The model.

    Yields:
        Keyword arguments on the model's device.
    """
    shapes = Shapes(model)
    main = model.main_input_name
    needed = {*shapes.required, *([main] if isinstance(main, str) else main)} & set(shapes.parameters)
    towers = _towers(shapes) if "input_ids" in shapes.parameters else {}
    taken = {each for name in towers for each in _TOWERS[name][2]} | {"video_grid_thw"} if towers else set()
    options: dict[str, list[Inputs]] = {}
    for name in (*sorted(needed, key=shapes.parameters.index), *(each for each in _LAYOUTS if each not in needed)):
        if name in towers:
            options[name] = [towers[name].inputs]
        elif name in shapes.parameters and name not in taken and not (towers and name in _TOWERS):
            options[name] = [{name: value} for value in shapes.layouts(name)]
        if name in options and name not in needed:
            options[name].append({})
    ways = sorted(product(*filter(None, options.values())), key=lambda way: sum(not each for each in way))
    for way in dict.fromkeys((*range(len(ways))[:_TRIES], *range(len(ways))[-_TRIES // 4 :])):
        given = {name: value for each in ways[way] for name, value in each.items()}
        yield _with_text(shapes, given, towers)


class Shapes:
    """What the inputs of one model look like.

    Args:
        model: A model of transformers.

    Attributes:
        parameters: The parameters of its ``forward``.
        required: Those without a default.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        known = inspect.signature(model.forward).parameters
        self.parameters = [
            name for name, each in known.items() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
        ]
        self.required = [name for name in self.parameters if known[name].default is inspect.Parameter.empty]

    def find(self, *names: str, default: Any = None) -> Any:
        """Return the first of the named fields in the configuration, then in those inside it."""
        level = [self.model.config]
        while level:
            for name in names:
                for config in level:
                    if (value := getattr(config, name, None)) is not None:
                        return value
            level = [each for config in level for each in vars(config).values() if hasattr(each, "to_json_string")]
        return default

    def number(self, *names: str, default: int) -> int:
        """Return the first of the named fields, or its first entry, as a number."""
        return _first(self.find(*names, default=default))

    def layouts(self, name: str) -> list[Tensor]:
        """Make a parameter in every layout that is known for it."""
        made = (layout(self) for layout in _LAYOUTS.get(name, ()))
        return [each for each in made if each is not None]

    def wave(self, *shape: int) -> Tensor:
        """Make numbers between -1 and 1."""
        return torch.arange(math.prod(shape), device=self.device).sin().view(shape)

    def ones(self, *shape: int) -> Tensor:
        """Make a mask that hides nothing."""
        return torch.ones(shape, dtype=torch.long, device=self.device)

    def tokens(self, *shape: int) -> Tensor:
        """Make tokens; a short text if no shape is given."""
        shape = shape or (1, _TOKENS)
        return 3 + torch.arange(math.prod(shape), device=self.device).view(shape) % _TOKENS

    def whole(self, *rows: Sequence[int]) -> Tensor:
        """Make a table of whole numbers."""
        return torch.tensor(rows, device=self.device)

    def images(self, *leading: int) -> Tensor:
        """Make images of the size that the configuration names."""
        size = self.find("image_size", "img_size", "input_size", "pretrain_image_size", default=_PIXELS)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return self.wave(*leading, self.number("num_channels", "in_channels", "in_chans", default=3), height, width)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of an image in patches."""
        side = 2 * self.number("spatial_merge_size", "merge_kernel_size", default=2)
        return side, side

    def patches(self, frames: int = 1, *, flat: bool = True) -> Tensor:
        """Make an image in patches, one after the other."""
        channels, side = self.number("num_channels", "in_channels", default=3), self.number("patch_size", default=16)
        depth = channels * frames
        return self.wave(math.prod(self.grid), *((depth * side**2,) if flat else (depth, side, side)))

    def strip(self) -> Tensor:
        """Make an image whose patches lie side by side."""
        side = self.number("patch_size", default=16)
        return self.wave(1, self.number("num_channels", default=3), side, side * math.prod(self.grid))

    @property
    def bands(self) -> int:
        """Number of features of a sound at a time."""
        names = ("num_mel_bins", "feature_size", "input_feat_per_channel", "feature_projection_input_dim", "n_mels")
        return self.number(*names, "mel_dim", "input_feat_size", "input_dim", default=80)

    @property
    def past(self) -> int:
        """Length of a time series."""
        length = self.number("context_length", "prediction_length", default=_FRAMES)
        return length + int(max(self.find("lags_sequence", default=[0])))


class _Tower:
    """What a part of a model that sees or hears is given, and how many tokens of the text stand for it."""

    def __init__(self, inputs: Inputs, count: int, marker: int) -> None:
        self.inputs, self.count, self.marker = inputs, count, marker


_BESIDE_IMAGES = (
    "image_grid_thw",
    "image_sizes",
    "spatial_shapes",
    "pixel_attention_mask",
    "target_sizes",
    "high_res_pixel_values",
)
_TOWERS: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "pixel_values": ("get_image_features", ("image_token_id", "image_token_index"), _BESIDE_IMAGES),
    "input_features": (
        "get_audio_features",
        ("audio_token_id", "audio_token_index"),
        ("input_features_mask", "feature_attention_mask"),
    ),
    "input_values": ("get_audio_features", ("audio_token_id", "audio_token_index"), ()),
    "pixel_values_videos": ("get_video_features", ("video_token_id", "video_token_index"), ("video_grid_thw",)),
}


def _towers(shapes: Shapes) -> dict[str, _Tower]:
    """Try each part of a model that turns pictures or sounds into tokens; a video only where there is no image."""
    towers: dict[str, _Tower] = {}
    for name, (method, markers, beside) in _TOWERS.items():
        owner = next((each for each in shapes.model.modules() if hasattr(each, method)), None)
        marker = shapes.find(*markers)
        if name not in shapes.parameters or owner is None or marker is None or (towers and "videos" in name):
            continue
        beside = tuple(each for each in beside if each in shapes.parameters)
        for way in product(shapes.layouts(name), *[[*shapes.layouts(each), None] for each in beside]):
            inputs = {each: value for each, value in zip((name, *beside), way, strict=True) if value is not None}
            if count := _count(owner, method, inputs):
                towers[name] = _Tower(inputs, count, marker)
                break
    return towers


def _count(model: Any, method: str, inputs: Inputs) -> int:
    """Return how many tokens the features of an input take; 0 if the model does not take it."""
    features = getattr(model, method)
    taken = inspect.signature(features).parameters
    configured = {name: getattr(model.config, name) for name in taken if hasattr(model.config, name)}
    try:
        with torch.no_grad():
            found = features(**configured | {name: value for name, value in inputs.items() if name in taken})
    except Exception:
        return 0  # another layout is tried next
    return count_tokens(found)


def count_tokens(features: Any) -> int:
    """Count the tokens that stand for what a part of a model of transformers sees or hears.

    Args:
        features: A tensor of shape (..., width), several, or an output with a ``pooler_output`` of such.

    Returns:
        The number of vectors.
    """
    if hasattr(features, "pooler_output"):
        features = features.last_hidden_state if features.pooler_output is None else features.pooler_output
    parts = (
        [features] if isinstance(features, Tensor) else [each for each in features or () if isinstance(each, Tensor)]
    )
    return sum(each.numel() // each.shape[-1] for each in parts)


def _with_text(shapes: Shapes, inputs: Inputs, towers: Mapping[str, _Tower]) -> Inputs:
    """Put the tokens into a text that stand for images, videos and sounds."""
    text = inputs.get("input_ids")
    if text is None:
        return inputs
    there = {name: tower for name, tower in towers.items() if tower.inputs.keys() <= inputs.keys()}
    for tower in there.values():
        text = torch.where(text == tower.marker, text + _TOKENS, text)
    marks = [torch.full((1, tower.count), tower.marker, device=shapes.device) for tower in there.values()]
    inputs = inputs | {"input_ids": torch.cat([text, *marks, text], 1) if marks else text}
    if marks and "mm_token_type_ids" in shapes.parameters:
        kinds = [torch.full_like(mark, 1 + list(_TOWERS).index(name)) for mark, name in zip(marks, there, strict=True)]
        inputs["mm_token_type_ids"] = torch.cat([torch.zeros_like(text), *kinds, torch.zeros_like(text)], 1)
    if "attention_mask" in shapes.parameters:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


def _first(value: Any) -> int:
    return int(value[0]) if isinstance(value, list | tuple) else int(value)


def _if(name: str, layout: Callable[[Shapes], Any]) -> Callable[[Shapes], Any]:
    """Make an input only for models that also take another."""
    return lambda shapes: layout(shapes) if name in shapes.parameters else None


def _pixels(shapes: Shapes) -> Tensor | None:
    if {"image_grid_thw", "grid_thw", "spatial_shapes", "target_sizes"}.intersection(shapes.parameters):
        return None
    frames = shapes.find("num_frames")
    return shapes.images(1, frames) if frames else shapes.images(1 if "input_ids" in shapes.parameters else 2)


def _packed(frames: int, *, flat: bool = True) -> Callable[[Shapes], Any]:
    def layout(shapes: Shapes) -> Any:
        packed = {"image_grid_thw", "grid_thw", "video_grid_thw"}.intersection(shapes.parameters)
        return shapes.patches(frames, flat=flat) if packed else None

    return layout


_PACKED = (_packed(2), _packed(1), _packed(1, flat=False), _packed(2, flat=False))
_MASKS = (
    lambda s: s.ones(1, 2 * s.number("max_source_positions", default=_FRAMES // 2)),
    lambda s: s.ones(1, _FRAMES),
)
_LAYOUTS: dict[str, Sequence[Callable[[Shapes], Any]]] = {
    "input_ids": (lambda s: s.tokens(),),
    "decoder_input_ids": (lambda s: s.tokens(),),
    "qformer_input_ids": (lambda s: s.tokens(),),
    "inputs_embeds": (
        lambda s: s.wave(1, _TOKENS, s.find("hidden_size", "d_model")) if "inputs_embeds" in s.required else None,
    ),
    "pixel_values": (
        _pixels,
        *_PACKED,
        _if("spatial_shapes", lambda s: s.patches()[None]),
        _if("grid_thw", lambda s: s.patches(flat=False)[None]),
        _if("target_sizes", lambda s: s.strip()),
        _if("input_ids", lambda s: s.images(1, 5)),
        _if("input_ids", lambda s: s.images(1, 1)),
    ),
    "hidden_states": (*_PACKED, lambda s: s.images(1), lambda s: s.wave(1, _TOKENS, s.find("hidden_size", "d_model"))),
    "pixel_values_videos": (*_PACKED, lambda s: s.images(1, s.number("num_frames", "frames_per_clip", default=2))),
    "image": (lambda s: s.images(1),),
    "image_grid_thw": (lambda s: s.whole((1, *s.grid)),),
    "video_grid_thw": (lambda s: s.whole((1, *s.grid)),),
    "grid_thw": (lambda s: s.whole((1, *s.grid)),),
    "spatial_shapes": (lambda s: s.whole(s.grid),),
    "pixel_attention_mask": (
        _if("spatial_shapes", lambda s: s.ones(1, math.prod(s.grid))),
        lambda s: s.ones(1, 1, *s.images().shape[-2:]),
        lambda s: s.ones(1, 5, *s.images().shape[-2:]),
    ),
    "target_sizes": (lambda s: s.whole(s.grid),),
    "high_res_pixel_values": (lambda s: s.wave(1, 3, *[s.model.config.high_res_vision_config.image_size] * 2),),
    "image_sizes": (lambda s: s.whole(tuple(s.images().shape[-2:])),),
    "input_features": (
        lambda s: s.wave(1, s.bands, 2 * s.number("max_source_positions", default=_FRAMES // 2)),
        lambda s: s.wave(1, _FRAMES, s.bands),
        lambda s: s.wave(1, 1, s.number("spec_size", default=_FRAMES), s.bands),
    ),
    "input_features_mask": _MASKS,
    "feature_attention_mask": _MASKS,
    "input_values": (
        lambda s: s.wave(1, _SAMPLES),
        lambda s: s.wave(1, 1, _SAMPLES),
        lambda s: s.wave(1, s.number("max_length", default=_FRAMES), s.bands),
    ),
    "spectrogram": (lambda s: s.wave(1, _FRAMES, s.number("model_in_dim", "num_mel_bins", default=80)),),
    "bbox": (lambda s: s.whole(*[[1, 2, 30, 40]] * _TOKENS)[None], lambda s: s.wave(1, _TOKENS, 8)),
    "past_values": (
        lambda s: s.wave(1, s.past, s.number("num_input_channels", default=1)),
        lambda s: s.wave(1, s.past),
    ),
    "past_time_features": (lambda s: s.wave(1, s.past, s.number("num_time_features", default=0)),),
    "past_observed_mask": (lambda s: torch.ones(1, s.past, device=s.device),),
    "future_values": (
        _if("past_time_features", lambda s: s.wave(1, s.number("prediction_length", default=1))),
        _if("past_time_features", lambda s: s.wave(1, s.number("prediction_length", default=1), 1)),
    ),
    "future_time_features": (
        lambda s: s.wave(1, s.number("prediction_length", default=1), s.number("num_time_features", default=0)),
    ),
}
