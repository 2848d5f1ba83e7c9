"""Alphas in TensorBoard, Weights & Biases and Accelerate's trackers, read back from what the real libraries wrote."""

import importlib
import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import rezero
from rezero.diagnose import AlphaRecorder
from rezero.errors import UsageError
from rezero.integrations import accelerate as for_accelerate
from rezero.integrations import tensorboard as for_tensorboard
from rezero.integrations import wandb as for_wandb
from rezero.integrations.extras import needs
from rezero.integrations.logged import alpha_scalars, alphas_of, heat_map_png
from tests.offline import steps_of

ALPHAS = [0.5, -0.25, 0.0]  # exact in float32
SCALARS = {
    "rezero/min_abs_alpha": 0.0,
    "rezero/mean_abs_alpha": 0.25,
    "rezero/max_abs_alpha": 0.5,
    "rezero_alpha/0.gate": 0.5,
    "rezero_alpha/1.gate": -0.25,
    "rezero_alpha/2.gate": 0.0,
}


def model_with(alphas: list[float]) -> nn.Module:
    return nn.Sequential(*(rezero.ReZero(nn.Linear(4, 4), gate=rezero.Gate(init_value=alpha)) for alpha in alphas))


@pytest.fixture
def recorder() -> AlphaRecorder:
    """Two records: all gates at a quarter, then at ALPHAS."""
    model = model_with([0.25] * len(ALPHAS))
    recorder = AlphaRecorder(model, every=1)
    recorder.step(1)
    with torch.no_grad():
        for gate, alpha in zip(rezero.gates(model).values(), ALPHAS, strict=True):
            gate.gate_parameter.fill_(alpha)
    recorder.step(2)
    return recorder


# The names


def test_few_gates_are_all_logged() -> None:
    """Every gate is a scalar beside the summary, unless only the summary is wanted."""
    alphas = dict(zip(("0.gate", "1.gate", "2.gate"), ALPHAS, strict=True))
    assert alpha_scalars(alphas, max_gates=32) == SCALARS
    assert list(alpha_scalars(alphas, max_gates=0)) == list(SCALARS)[:3]


@pytest.mark.parametrize("most", [1, 2, 7, 32, 999])
def test_thousands_of_gates_do_not_flood_a_tracker(most: int) -> None:
    """Of 1,000 gates as many as allowed are logged, at even distances from the first, to the last but for one alone."""
    scalars = alpha_scalars({str(place): float(place) for place in range(1000)}, max_gates=most)
    places = np.array([value for name, value in scalars.items() if name.startswith("rezero_alpha/")])
    assert len(places) == most
    assert places[0] == 0
    assert most == 1 or places[-1] == 999
    assert most == 1 or np.ptp(np.diff(places)) <= 1
    assert scalars["rezero/mean_abs_alpha"] == 499.5


def test_a_negative_number_of_gates_is_refused() -> None:
    """The error says what to write for none."""
    with pytest.raises(ValueError, match="max_gates must not be negative: got -1; 0 logs the summary alone"):
        alpha_scalars({"gate": 0.0}, max_gates=-1)


def test_a_model_is_read_as_it_is_now() -> None:
    """Without a recorder, the gates of the moment are taken."""
    assert list(alphas_of(model_with(ALPHAS)).values()) == ALPHAS


def test_what_there_is_not_is_not_logged() -> None:
    """A recorder without a record, a model without gates and the past of a model are refused, with what to do."""
    model = model_with(ALPHAS)
    with pytest.raises(UsageError, match="no record yet: log at the steps that it records, or log the model"):
        alphas_of(AlphaRecorder(model))
    with pytest.raises(UsageError, match="no gates: put some in"):
        alphas_of(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="got a model: log the recorder"):
        heat_map_png(model)


@pytest.mark.parametrize(
    ("library", "extra"),
    [
        ("torch.utils.tensorboard", "tensorboard"),
        ("wandb", "wandb"),
        ("accelerate", "lab"),
        ("transformers", "transformers"),
        ("lightning.pytorch", "lightning"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing an integration without its library says what to install."""
    name = f"rezero.integrations.{'accelerate' if extra == 'lab' else extra}"
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match=rf"can't be imported \(.*\): pip install 'rezero-torch\[{extra}\]'"):
        importlib.import_module(name)


def failing(error: Exception) -> None:
    """Import something that raises."""
    with needs("the Trainer", extra="transformers"):
        raise error


def test_a_torchvision_for_another_torch_is_explained() -> None:
    """By what helps, in one trace, however deep it lies; other errors of a library are left as they are."""
    hidden = ModuleNotFoundError("Could not import module 'Trainer'")
    hidden.__cause__ = RuntimeError("operator torchvision::nms does not exist")
    expected = r"the Trainer .*torchvision::nms does not exist\): install torchvision and torch from the same"
    with pytest.raises(ImportError, match=expected) as caught:
        failing(hidden)
    assert caught.value.__suppress_context__
    with pytest.raises(RuntimeError, match="no driver"):
        failing(RuntimeError("no driver"))


# TensorBoard


def events(folder: Path) -> EventAccumulator:
    read = EventAccumulator(str(folder))
    read.Reload()
    return read


def scalars_of(read: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_holds_scalars_and_a_histogram(recorder: AlphaRecorder, tmp_path: Path) -> None:
    """The event file gives back each gate's alpha and the summary at the step, and a histogram of all gates."""
    with SummaryWriter(tmp_path) as writer:
        for_tensorboard.log_alphas(writer, recorder, 2)
    read = events(tmp_path)
    assert scalars_of(read) == {name: [(2, value)] for name, value in SCALARS.items()}
    (event,) = read.Histograms("rezero/alpha")
    histogram = event.histogram_value
    assert (event.step, histogram.num, histogram.min, histogram.max, histogram.sum) == (2, 3, -0.25, 0.5, 0.25)
    assert read.Tags()["images"] == []


def test_tensorboard_shows_the_heat_map(recorder: AlphaRecorder, tmp_path: Path) -> None:
    """The image in the event file is the chart of the recorder's history, dot by dot."""
    with SummaryWriter(tmp_path) as writer:
        for_tensorboard.log_alphas(writer, recorder, 2, heat_map=True)
    (event,) = events(tmp_path).Images("rezero/alpha_over_depth")
    assert event.step == 2
    assert np.array_equal(pixels(event.encoded_image_string), pixels(heat_map_png(recorder).read()))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_only_so_many_gates_are_written(tmp_path: Path) -> None:
    """A network of 100 gates adds 32 scalars and the summary."""
    with SummaryWriter(tmp_path) as writer:
        for_tensorboard.log_alphas(writer, model_with([0.1] * 100), 1)
    assert len(events(tmp_path).Tags()["scalars"]) == 32 + 3


@pytest.mark.parametrize("alphas", [[0.5, math.nan, -math.inf], [math.nan] * 3], ids=["some", "all"])
def test_gates_that_are_not_finite_stop_no_training(run: wandb.Run, alphas: list[float], tmp_path: Path) -> None:
    """Where gates are nan the summary is nan too, and the histograms hold the others."""
    model = model_with([0.0] * 3)
    with torch.no_grad():
        for gate, alpha in zip(rezero.gates(model).values(), alphas, strict=True):
            gate.gate_parameter.fill_(alpha)
    with SummaryWriter(tmp_path) as writer:
        for_tensorboard.log_alphas(writer, model, 1)
    for_wandb.log_alphas(run, model, 1)
    read = events(tmp_path)
    assert math.isnan(read.Scalars("rezero/max_abs_alpha")[0].value)
    shown = [event.histogram_value.num for tag in read.Tags()["histograms"] for event in read.Histograms(tag)]
    assert shown == [1] * math.isfinite(alphas[0])


# Weights & Biases


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[wandb.Run]:
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(project="rezero", dir=tmp_path, mode="offline") as run:
        yield run
    wandb.teardown()


def test_wandb_holds_scalars_and_a_histogram(run: wandb.Run, recorder: AlphaRecorder, tmp_path: Path) -> None:
    """An offline run's file gives back the scalars and the histogram of all gates, at the step."""
    for_wandb.log_alphas(run, recorder, 2)
    run.finish()
    wandb.teardown()  # its process closes the file
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    (logged,) = steps_of(folder)
    assert logged["rezero/alpha/_type"] == "histogram"
    assert sum(logged["rezero/alpha/values"]) == len(ALPHAS)
    assert logged.items() >= SCALARS.items()
    assert logged["_step"] == 2


def test_wandb_shows_the_heat_map(run: wandb.Run, recorder: AlphaRecorder, tmp_path: Path) -> None:
    """The picture among the files of an offline run is the chart of the recorder's history, dot by dot."""
    for_wandb.log_alphas(run, recorder, 2, heat_map=True)
    run.finish()
    wandb.teardown()  # its process closes the file
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/images/rezero/*.png")
    assert np.array_equal(pixels(file.read_bytes()), pixels(heat_map_png(recorder).read()))


# Accelerate


class Kept(GeneralTracker):
    """A tracker that only takes what every tracker of Accelerate takes."""

    name = "kept"
    requires_logging_directory = False
    tracker = None

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[dict[str, float], int | None]] = []

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Nothing is configured."""

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        self.logged.append((values, step))


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[tuple[Accelerator, Kept]]:
    kept = Kept()
    accelerator = Accelerator(cpu=True, log_with=["tensorboard", kept], project_dir=tmp_path)
    accelerator.init_trackers("run")
    yield accelerator, kept
    AcceleratorState._reset_state(reset_partial_state=True)


def test_every_tracker_of_accelerate_gets_the_scalars(
    kept: tuple[Accelerator, Kept], recorder: AlphaRecorder, tmp_path: Path
) -> None:
    """TensorBoard's files and a tracker of one's own hold the recorder's last record at the step."""
    accelerator, own = kept
    for_accelerate.log_alphas(accelerator, recorder, 2)
    accelerator.end_training()
    assert own.logged == [(SCALARS, 2)]
    assert scalars_of(events(tmp_path / "run")) == {name: [(2, value)] for name, value in SCALARS.items()}


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_accelerate_takes_the_model_itself(kept: tuple[Accelerator, Kept], compiled: bool) -> None:
    """A prepared model is logged under its gates' own names, and stays what it was."""
    accelerator, own = kept
    model = model_with(ALPHAS)
    model = accelerator.prepare(torch.compile(model, backend="eager") if compiled else model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for_accelerate.log_alphas(accelerator, model, 7)
    assert own.logged == [(SCALARS, 7)]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_accelerate_refuses_a_model_without_gates(kept: tuple[Accelerator, Kept]) -> None:
    """The error is the recorder's."""
    with pytest.raises(UsageError, match="no gates"):
        for_accelerate.log_alphas(kept[0], nn.Linear(2, 2), 1)
