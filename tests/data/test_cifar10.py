"""CIFAR-10: its files, its two layouts, and the augmentation."""

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rezero.data.batches import TensorData
from rezero.data.cifar10 import crop_and_flip, load_cifar10, read_cifar10, standardise
from rezero.data.sources import Source
from rezero.errors import UsageError

FOLDER = "cifar-10-batches-py"
STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's mean and deviation


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_files_are_joined_in_order(data: Path, small_cifar10: Source) -> None:
    """Training images are those of the five batches in their order, each with its label; the test batch is apart."""
    images, labels, test_images, test_labels = read_cifar10(data / FOLDER, small_cifar10)
    assert (images.shape, images.dtype, labels.dtype) == ((40, 3072), torch.uint8, torch.int64)
    for i in range(5):
        batch = pickle.loads((data / FOLDER / f"data_batch_{i + 1}").read_bytes())  # noqa: S301
        assert torch.equal(images[8 * i : 8 * i + 8], torch.from_numpy(batch["data"]))
        assert labels[8 * i : 8 * i + 8].tolist() == batch["labels"]
    assert (test_images.shape, test_labels.tolist()) == ((6, 3072), [9, 0, 3, 3, 5, 1])


def test_flat_layout_is_the_fully_connected_networks(small_cifar10: Source, data: Path) -> None:
    """Rows of 3,072 values (x / 255 - 0.5) / 0.5, float32 made of bytes, the same in every epoch."""
    flat = load_cifar10(layout="flat", source=small_cifar10)
    assert flat.inputs.dtype == flat.val_inputs.dtype == torch.uint8
    raw, labels, test, test_labels = read_cifar10(data / FOLDER, small_cifar10)
    for seed, step in ((0, 0), (3, 11)):
        inputs, targets = flat.batch(seed, step, 8)
        order = replace(flat, prepare=None).batch(seed, step, 8)[0]
        assert (inputs.shape, inputs.dtype) == ((8, 3072), torch.float32)
        torch.testing.assert_close(inputs.double(), (order.double() / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)
        rows = [raw.tolist().index(row) for row in order.tolist()]
        assert torch.equal(targets, labels[rows])
    inputs, targets = flat.val_batch(0, 6)
    torch.testing.assert_close(inputs.double(), (test.double() / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)
    assert torch.equal(targets, test_labels)


def test_image_layout_is_the_resnets(small_cifar10: Source) -> None:
    """Images (3, 32, 32), colour by colour and row by row, standardised with ImageNet's mean and deviation."""
    image = load_cifar10(layout="image", source=small_cifar10)
    raw = image.val_inputs.view(6, 3, 32, 32).double() / 255
    mean, std = (torch.tensor(v).double()[:, None, None] for v in STATISTICS)
    inputs, _ = image.val_batch(0, 6)
    assert (inputs.shape, inputs.dtype) == ((6, 3, 32, 32), torch.float32)
    torch.testing.assert_close(inputs.double(), (raw - mean) / std, rtol=0, atol=1e-6)
    flat = load_cifar10(layout="flat", source=small_cifar10)
    assert torch.equal(image.val_inputs.flatten(1), flat.val_inputs)
    assert torch.equal(image.inputs.flatten(1), flat.inputs)


def test_training_images_are_augmented_and_validation_images_are_not(small_cifar10: Source) -> None:
    """A training image differs from epoch to epoch, a validation image never."""
    data = load_cifar10(source=small_cifar10)
    views = [data.batch(0, step, 40) for step in range(6)]
    by_example = [inputs[(targets == 1).nonzero()[:, 0]] for inputs, targets in views]
    assert len({tuple(sorted(batch.sum((1, 2, 3)).tolist())) for batch in by_example}) == 6
    assert torch.equal(data.val_batch(0, 6)[0], data.val_batch(0, 6)[0])
    assert torch.equal(data.val_batch(0, 6)[0], replace(data, augment=None).val_batch(0, 6)[0])


@pytest.mark.parametrize("part", [slice(0, 5), slice(5, 16), slice(3, None, 4), slice(2, 2)], ids=str)
def test_a_part_is_rows_of_the_batch_augmentation_included(small_cifar10: Source, part: slice) -> None:
    """Rows of a batch have the same pixels bit for bit when they are drawn alone, in a short last batch too."""
    data = load_cifar10(source=small_cifar10)
    for step in (0, 1, 2, 7, 8):
        for whole, rows in zip(data.batch(1, step, 16), data.batch(1, step, 16, part), strict=True):
            assert torch.equal(rows, whole[part])


def slow_crop_and_flip(image: list[list[int]], number: int) -> list[list[int]]:
    """One channel of one image, pixel by pixel: mirrored, framed, cropped."""
    number, flip = divmod(number, 2)
    number, top = divmod(number, 9)
    left = number % 9
    height, width = len(image), len(image[0])
    mirrored = [row[::-1] if flip else row for row in image]
    frame = [[0] * (width + 8) for _ in range(height + 8)]
    for i, j in ((i, j) for i in range(height) for j in range(width)):
        frame[i + 4][j + 4] = mirrored[i][j]
    return [[frame[top + i][left + j] for j in range(width)] for i in range(height)]


@pytest.mark.parametrize("size", [(32, 32), (7, 11)], ids=["32 x 32", "7 x 11"])
def test_crops_and_flips_are_the_slow_loops(size: tuple[int, int]) -> None:
    """Augmented images are what a loop over pixels gives: mirrored first, then cropped from a frame of zeros."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (24, 3, *size), generator=generator, dtype=torch.uint8)
    numbers = torch.randint(2**62, (24,), generator=generator)
    numbers[:3] = torch.tensor([0, 2**62 - 1, 2 * (9 * 4 + 4)])
    result = crop_and_flip(images, numbers)
    assert result.dtype == torch.uint8
    for image, number, got in zip(images, numbers, result, strict=True):
        assert [slow_crop_and_flip(channel.tolist(), int(number)) for channel in image] == got.tolist()
    assert torch.equal(result[2], images[2])  # the number of the centre, not mirrored


def test_the_frame_is_black_after_standardising(small_cifar10: Source) -> None:
    """Pixels from outside a white image are (0 - mean) / std of their channel, the authors' order of operations."""
    data = load_cifar10(source=small_cifar10)
    white = replace(data, inputs=torch.full_like(data.inputs, 255))
    inputs, _ = white.batch(0, 0, 40)
    black, bright = (standardise(torch.full((1, 3, 1, 1), v, dtype=torch.uint8), *STATISTICS) for v in (0, 255))
    assert ((inputs == black) | (inputs == bright)).all()
    assert 0.05 < (inputs == black).float().mean() < 0.3  # the mean crop has 1 - (1 - 20 / 9 / 32)^2 = 13% of frame


def test_every_flip_and_place_is_as_likely() -> None:
    """Of 16,200 images each of the 2 x 9 x 9 outcomes gets 100 give or take five deviations."""
    images = torch.zeros(16200, 1, 18, 18, dtype=torch.uint8)
    images[:, :, 4, 4] = 1
    numbers = torch.randint(2**62, (16200,), generator=torch.Generator().manual_seed(0))
    _, _, rows, columns = crop_and_flip(images, numbers).nonzero(as_tuple=True)
    counts = Counter(zip(rows.tolist(), columns.tolist(), strict=True))
    assert {*counts} == {(row, column) for row in range(9) for column in range(18)}
    assert all(50 < count < 150 for count in counts.values())


def test_standardise_takes_one_or_a_channels_statistics() -> None:
    """One mean and deviation stand for all channels, in any shape."""
    pixels = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    one = standardise(pixels, (0.5,), (0.25,))
    assert torch.equal(one, standardise(pixels, (0.5,) * 3, (0.25,) * 3))
    assert torch.equal(one.flatten(), standardise(pixels.flatten(), (0.5,), (0.25,)))


def examples(data: TensorData) -> tuple[set[bytes], set[bytes]]:
    def of(images: Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    return of(data.inputs), of(data.val_inputs)


@pytest.mark.parametrize("layout", ["flat", "image"])
def test_held_out_images_come_from_training(small_cifar10: Source, layout: str) -> None:
    """A holdout is so many training images, apart from the rest; a larger one holds a smaller; none is a test image."""
    train, test = examples(load_cifar10(layout=layout, source=small_cifar10))
    rest_10, held_10 = examples(load_cifar10(layout=layout, holdout=10, source=small_cifar10))
    rest_25, held_25 = examples(load_cifar10(layout=layout, holdout=25, source=small_cifar10))
    assert (len(held_10), len(held_25)) == (10, 25)
    assert rest_10 | held_10 == rest_25 | held_25 == train
    assert not rest_10 & held_10
    assert held_10 < held_25
    assert not test & train


def test_held_out_images_keep_their_labels(small_cifar10: Source) -> None:
    """An image has the same label in either part."""
    whole = load_cifar10(layout="flat", source=small_cifar10)
    labels = dict(zip(map(tuple, whole.inputs.tolist()), whole.targets.tolist(), strict=True))
    data = load_cifar10(layout="flat", holdout=10, source=small_cifar10)
    for inputs, targets in ((data.inputs, data.targets), (data.val_inputs, data.val_targets)):
        assert [labels[tuple(row)] for row in inputs.tolist()] == targets.tolist()


@pytest.mark.parametrize("holdout", [-1, 40, 41], ids=str)
def test_a_holdout_must_leave_training_images(small_cifar10: Source, holdout: int) -> None:
    """A holdout below 0 or of everything is an error."""
    with pytest.raises(UsageError, match=f"holdout must leave training images, 0 to 39 of 40: got {holdout}"):
        load_cifar10(holdout=holdout, source=small_cifar10)


def test_an_unknown_layout_is_an_error(data: Path) -> None:
    """A layout is flat or image, which is said before the files are looked for."""
    with pytest.raises(UsageError, match="layout must be flat or image: got 'rows'"):
        load_cifar10(layout="rows")  # type: ignore[arg-type]


def test_without_files_the_command_is_named(data: Path) -> None:
    """No folder in any place is an error with the command that downloads."""
    with pytest.raises(UsageError, match=f"no cifar10 here: looked for {FOLDER} in .*`rezero download cifar10`"):
        load_cifar10()


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_one_flipped_bit_is_an_error(data: Path, small_cifar10: Source, name: str) -> None:
    """A file that differs in a bit is named with both checksums."""
    path = data / FOLDER / name
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    expected = small_cifar10.files[f"{FOLDER}/{name}"]
    with pytest.raises(
        UsageError, match=rf"{name} is not what it should be: expected {expected}, got md5:\w+: replace"
    ):
        load_cifar10(source=small_cifar10)


def test_a_missing_file_is_an_error(data: Path, small_cifar10: Source) -> None:
    """A file that is not there is named, with what to do."""
    (data / FOLDER / "data_batch_5").unlink()
    with pytest.raises(
        UsageError, match="data_batch_5 is missing, one of the 6 files of cifar10: replace it, or remove"
    ):
        load_cifar10(source=small_cifar10)


def test_a_wrong_file_is_never_unpickled(data: Path, small_cifar10: Source, tmp_path: Path) -> None:
    """A pickle that would run something does not, because its checksum is looked at first."""
    path, trace = data / FOLDER / "data_batch_1", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Touch(trace)))
    with pytest.raises(UsageError, match="data_batch_1 is not what it should be"):
        load_cifar10(source=small_cifar10)
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # noqa: S301 - the danger is real
    assert trace.exists()


@pytest.fixture(scope="module")
def real(real_folders: list[Path]) -> TensorData:
    if not any((folder / FOLDER).is_dir() for folder in real_folders):
        pytest.skip(f"no {FOLDER} in {', '.join(map(str, real_folders)) or 'any folder'}; REZERO_DATA would name one")
    return load_cifar10()


def test_real_images_have_the_published_statistics(real: TensorData) -> None:
    """50,000 and 10,000 images of ten balanced classes, with the mean and deviation that are known for training."""
    assert (real.inputs.shape, real.val_inputs.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert torch.bincount(real.targets).tolist() == [5000] * 10
    assert torch.bincount(real.val_targets).tolist() == [1000] * 10
    for channel, mean, std in zip(range(3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), strict=True):
        pixels = real.inputs[:, channel].float() / 255
        assert pixels.mean(dtype=torch.float64).item() == pytest.approx(mean, abs=1e-4)
        assert pixels.std().item() == pytest.approx(std, abs=1e-4)


def test_real_images_are_the_first_of_the_data_set(real: TensorData) -> None:
    """The first labels are frog, truck, truck, deer, automobile; of the test batch cat, ship, ship, airplane, frog."""
    assert real.targets[:5].tolist() == [6, 9, 9, 4, 1]
    assert real.val_targets[:5].tolist() == [3, 8, 8, 0, 6]
