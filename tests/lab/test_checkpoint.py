"""Checkpoints: what is saved comes back, and nothing else is ever believed."""

import hashlib
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rezero.errors import UsageError
from rezero.lab import Checkpoints

OWNER = {"task": "fc-digits", "arm": "rezero", "lr": 0.1 + 0.2, "seed": 0, "data": None}
TENSORS, STATE = "tensors.safetensors", "state.json"


@pytest.fixture
def place(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "study" / "trial", OWNER)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes, None for a folder."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten().clone().view(torch.uint8)


def same(one: Any, other: Any) -> bool:
    """Whether two values are of the same types and the same bits, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and torch.equal(bits(one), bits(other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(a, b) for pair in zip(one.items(), other.items(), strict=True) for a, b in zip(*pair, strict=True)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float):
        return repr(one) == repr(other)
    return bool(one == other)


SHARED = torch.arange(6.0)
VALUES: dict[str, Any] = {
    "none": None,
    "bools": [True, False, 1, 0, 1.0, 0.0],
    "whole-numbers": [0, -1, 2**63, 10**40],
    "floats": [0.1 + 0.2, 1e-300, 5e-324, -0.0, math.inf, -math.inf, math.nan, 1e300],
    "texts": ["", "é \u2028 \U0001f600 \x00", '"{}"\n', "tensor"],
    "int-keys": {0: "a", 10: "b", -1: {2: 3}},
    "mixed-keys": {"1": "text", 1: "number", None: 0, 2.5: 1, (1, "a"): 2},
    "order": {"b": 1, "a": 2, "c": 3},
    "tuples": ((), (1,), (1, (2, [3, (4,)])), []),
    "counter": Counter({100: 1, 150: 2}),
    "empty": {"dict": {}, "list": [], "tuple": (), "counter": Counter()},
    "looks-like-a-tag": {"tensor": "0", "list": [{"dict": [["a", 1]]}]},
    "tensor": torch.tensor([[0.1, math.nan, -0.0], [math.inf, 5e-324, 1e-45]]),
    "scalars": [torch.tensor(1.5), torch.tensor(7), torch.tensor(True)],
    "empty-tensors": [torch.empty(0), torch.empty(0, 3, dtype=torch.int64)],
    "dtypes": [torch.arange(4).to(kind) for kind in (torch.bfloat16, torch.float16, torch.float64, torch.uint8)],
    "more-dtypes": [torch.arange(4).to(kind) for kind in (torch.int8, torch.int16, torch.int32, torch.bool)],
    "views": [SHARED, SHARED[2:], SHARED.view(2, 3), SHARED.view(2, 3).T, SHARED[::2], SHARED],
    "expanded": torch.ones(1).expand(3, 2),
    "optimizer": {
        "state": {0: {"step": torch.tensor(3.0), "sum": torch.ones(2)}},
        "param_groups": [{"betas": (0.9, 1)}],
    },
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_what_is_saved_is_loaded(place: Checkpoints, value: Any) -> None:
    """Values come back of the same types and bits, in the same order, also by another object for the same trial."""
    place.save(3, value)
    assert place.latest() == 3
    assert same(place.load(3), value)
    assert same(Checkpoints(place.folder, dict(OWNER)).load(3), value)


def test_a_parameter_comes_back_as_its_values(place: Checkpoints) -> None:
    """A parameter, with its gradient and its graph, is saved as the plain tensor that it holds."""
    layer = torch.nn.Linear(2, 2)
    (2 * layer.weight).sum().backward()
    place.save(1, {"weight": layer.weight, "ordered": OrderedDict(layer.state_dict())})
    state = place.load(1)
    assert type(state["weight"]) is torch.Tensor
    assert not state["weight"].requires_grad
    assert torch.equal(state["weight"], layer.weight)
    assert [*state["ordered"]] == ["weight", "bias"]


def test_loaded_tensors_share_nothing(place: Checkpoints) -> None:
    """Tensors that shared storage when they were saved can be changed one by one."""
    place.save(1, [SHARED, SHARED[2:]])
    one, two = place.load(1)
    one.zero_()
    assert torch.equal(two, SHARED[2:])


def test_saving_changes_nothing(place: Checkpoints) -> None:
    """What is saved is as it was, and later changes to it do not reach the checkpoint."""
    state = {"weight": torch.ones(3), "steps": [1, 2]}
    place.save(1, state)
    assert same(state, {"weight": torch.ones(3), "steps": [1, 2]})
    state["weight"].zero_()
    state["steps"].append(3)
    assert same(place.load(1), {"weight": torch.ones(3), "steps": [1, 2]})


def test_only_the_newest_is_kept(place: Checkpoints) -> None:
    """There is one state at a time, that of the last save, in two files."""
    for step in (1, 9, 10, 1_000_000_000):
        place.save(step, {"step": step})
        assert place.latest() == step
        name = f"step-{step:09d}"
        assert [*tree(place.folder)] == [name, f"{name}/{STATE}", f"{name}/{TENSORS}"]
        assert place.load(step) == {"step": step}


def test_the_same_step_again_changes_nothing(place: Checkpoints) -> None:
    """A step has one state: a second one is not written over the first, which could leave neither."""
    place.save(5, "before")
    place.save(5, "after")
    assert place.load(5) == "before"
    assert [path.name for path in place.folder.iterdir() if path.name.startswith("step")] == ["step-000000005"]


@pytest.mark.parametrize("name", ["step-abc", "step-", "step-7.bak", "step-by-step", "step-7", "step-\u0661" * 9])
def test_a_stray_folder_is_no_checkpoint(place: Checkpoints, name: str) -> None:
    """A folder whose name is not a step as it is written here is passed over, and stays."""
    place.save(5, "state")
    (place.folder / name).mkdir()
    (place.folder / name / "thesis.tex").write_text("years of work")
    assert place.latest() == 5
    place.save(6, "state")
    assert {path.name for path in place.folder.iterdir()} == {"step-000000006", name}
    assert (place.folder / name / "thesis.tex").read_text() == "years of work"


def test_an_owner_that_lacks_a_fact_is_another(place: Checkpoints) -> None:
    """A checkpoint of a version without some setting is foreign, even where the setting's value is None."""
    newer = Checkpoints(place.folder, {**place.owner, "new setting": None})
    place.save(5, "state")
    with pytest.raises(UsageError, match=r"belongs to another trial \(new setting: expected None, got .nothing"):
        newer.load(5)


def test_a_state_nested_without_end_is_damaged(place: Checkpoints) -> None:
    """JSON too deep to be read is a UsageError."""
    place.save(5, "state")
    (place.folder / "step-000000005" / "state.json").write_bytes(b"[" * 100_000)
    with pytest.raises(UsageError, match=r"is not the state of a checkpoint \(RecursionError"):
        place.load(5)


def test_there_is_none_at_first(place: Checkpoints) -> None:
    """A trial without a checkpoint is at step 0, and asking creates nothing."""
    assert place.latest() == 0
    place.clear()
    assert not place.folder.parent.exists()


def test_clear_forgets(place: Checkpoints) -> None:
    """After clear() there is no checkpoint and no folder, and the next one begins anew."""
    place.save(5, "old")
    place.clear()
    assert place.latest() == 0
    assert not place.folder.exists()
    place.save(1, "new")
    assert (place.latest(), place.load(1)) == (1, "new")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half of something"], ids=["empty", "half"])
def test_a_save_that_was_cut_off_is_ignored(place: Checkpoints, content: bytes) -> None:
    """What a kill leaves of an unfinished save is no checkpoint, and the next save takes its place."""
    place.save(5, "whole")
    writing = place.folder / ".writing"
    writing.mkdir()
    (writing / TENSORS).write_bytes(content)
    assert (place.latest(), place.load(5)) == (5, "whole")
    place.save(6, "next")
    assert (place.latest(), place.load(6)) == (6, "next")
    assert not writing.exists()


def test_a_kill_before_the_old_one_is_dropped_leaves_the_new_one(place: Checkpoints) -> None:
    """Of two whole states, which a kill between rename and removal leaves, the newer counts."""
    place.save(999_999_999, "old")
    aside = place.folder.with_name("aside")
    place.folder.rename(aside)
    place.save(1_000_000_000, "new")
    (aside / "step-999999999").rename(place.folder / "step-999999999")
    assert (place.latest(), place.load(1_000_000_000)) == (1_000_000_000, "new")


# A program that saves a state over another one, and kills itself at the n-th thing that it does to a file on the way.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from rezero.lab import Checkpoints
from rezero.lab import checkpoint

folder = Path(sys.argv[1])
TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir"}
for number in range(1, 200):
    place = Checkpoints(folder / str(number), {"n": 1})
    place.save(7, {"weight": torch.full((1000,), 7.0)})
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if not status:
            print(number)
            sys.exit()
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        continue
    left = number

    def count(event, _):
        global left
        left -= event in TOUCHES
        if left == 0 and event in TOUCHES:  # not for the kill itself
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function):
        def call(*arguments):
            count("open", None)
            return function(*arguments)
        return call

    sys.addaudithook(count)
    os.fsync = counted(os.fsync)
    checkpoint.save_file = counted(checkpoint.save_file)
    place.save(8, {"weight": torch.full((1000,), 8.0)})
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_state(tmp_path: Path) -> None:
    """Killed at each of the things that a save does to files, a trial has its old state or its new one, whole."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    moments = int(done.stdout)
    assert moments > 12
    steps = []
    for number in range(1, moments + 1):
        place = Checkpoints(tmp_path / str(number), {"n": 1})
        steps.append(place.latest())
        assert torch.equal(place.load(steps[-1])["weight"], torch.full((1000,), float(steps[-1])))
    assert steps == sorted(steps)
    assert {*steps} == {7, 8}


# A program that saves a small state, and then one for which there is no room.
FULL = """
import resource, sys
from pathlib import Path
import torch
from rezero.errors import UsageError
from rezero.lab import Checkpoints

place = Checkpoints(Path(sys.argv[1]), {"n": 1})
if sys.argv[3] == "second":
    place.save(3, {"weight": torch.ones(5)})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    place.save(4, {"weight": torch.zeros(50_000), "text": "x" * 100_000})
except UsageError as error:
    print(error)
else:
    print("it was written")
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("limit", [0, 100_000, 250_000], ids=["nothing-fits", "tensors-do-not-fit", "state-does-not"])
def test_a_full_disk_leaves_the_last_state(tmp_path: Path, limit: int, order: str) -> None:
    """A write that fails in the middle is one line that says what is kept; the last state is there, whole."""
    program = FULL if limit < 200_000 else FULL.replace('x" * 100_000', 'x" * 300_000')
    command = [sys.executable, "-c", program, str(tmp_path / "trial"), str(limit), order]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"cannot write a checkpoint into {tmp_path / 'trial'} (")
    kept = "the one of step 3 is kept" if order == "second" else "there was none before"
    assert re.search(rf"\); {kept}: make room.* the same command again$", line), line
    place = Checkpoints(tmp_path / "trial", {"n": 1})
    if order == "second":
        assert [*tree(place.folder)] == ["step-000000003", f"step-000000003/{STATE}", f"step-000000003/{TENSORS}"]
        assert torch.equal(place.load(place.latest())["weight"], torch.ones(5))
    else:
        assert place.latest() == 0
        assert tree(place.folder) == {}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """Where a file has the folder's place the save says so, and the file stays."""
    (tmp_path / "trial").write_text("a file")
    with pytest.raises(UsageError, match=r"cannot write a checkpoint into .*trial .*there was none before") as caught:
        Checkpoints(tmp_path / "trial", OWNER).save(1, None)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == {"trial": b"a file"}


@pytest.mark.parametrize("depth", [1, 2], ids=["the-trials-folder", "the-folder-of-all"])
def test_a_file_in_the_way_is_named(tmp_path: Path, depth: int) -> None:
    """check() refuses a file where a folder should be made, and neither a folder nor nothing at all."""
    place = Checkpoints(tmp_path / "study" / "trial", OWNER)
    place.check()
    place.save(1, None)
    place.check()
    place.clear()
    blocked = [place.folder, place.folder.parent][depth - 1]
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("a file")
    with pytest.raises(UsageError, match=rf"^{blocked} should become a folder for checkpoints, and is a file: move"):
        place.check()


def test_a_renamed_state_is_refused(place: Checkpoints) -> None:
    """A state whose folder was renamed is not taken for that of another step."""
    place.save(7, "state")
    (place.folder / "step-000000007").rename(place.folder / "step-000000009")
    assert place.latest() == 9
    with pytest.raises(UsageError, match=r"step-000000009 holds the state of step 7, expected that of step 9: delete"):
        place.load(9)


UNSAVEABLE: dict[str, tuple[Any, str]] = {
    "object": (object(), "got object"),
    "set": ({1, 2}, "got set"),
    "bytes": (b"bytes", "got bytes"),
    "function": (print, "got builtin_function_or_method"),
    "deep": ({"a": [(1, {"b": torch.device("cpu")})]}, "got device"),
    "complex": (1j, "got complex"),
}


@pytest.mark.parametrize(("value", "message"), UNSAVEABLE.values(), ids=UNSAVEABLE)
def test_what_cannot_be_saved_is_refused(place: Checkpoints, value: Any, message: str) -> None:
    """A value that a checkpoint cannot hold is a TypeError that names its type; the last state stays."""
    place.save(1, "last")
    before = tree(place.folder)
    with pytest.raises(TypeError, match=rf"holds tensors, containers and plain values: {message}"):
        place.save(2, {"ok": 1, "value": value})
    assert tree(place.folder) == before


# What can have happened to a checkpoint: a change of its folder, and what is said of it.


def change_state(change: Callable[[dict[str, Any]], object], *, signed: bool = True) -> Callable[[Path], None]:
    """A change of the JSON, with a checksum that fits it unless told."""

    def damage(path: Path) -> None:
        facts = json.loads((path / STATE).read_text())
        checksum = facts.pop("sha256")
        change(facts)
        if signed:
            checksum = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        (path / STATE).write_text(json.dumps({"sha256": checksum, **facts}))

    return damage


def digit_flipped(path: Path) -> None:
    text = (path / STATE).read_text()
    assert text.count('"seven",\n') == 1
    (path / STATE).write_text(re.sub(r'("seven",\s+)7', r"\g<1>8", text))


def drop_checksum(path: Path) -> None:
    facts = json.loads((path / STATE).read_text())
    del facts["sha256"]
    (path / STATE).write_text(json.dumps(facts))


def flip(name: str, place: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        (path / name).write_bytes(content)

    return damage


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: int(share * len(content))])

    return damage


def become(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(content) and None


def other_tensors(path: Path) -> None:
    save_file({"0": torch.zeros(4)}, path / TENSORS)


def longer(path: Path) -> None:
    (path / TENSORS).write_bytes((path / TENSORS).read_bytes() + b"\0")


def folder_of_that_name(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return damage


NO_STATE = r"state\.json is not the state of a checkpoint \(.+\)"
NO_TENSORS = r"tensors\.safetensors cannot be used"
CHANGED = r"state\.json is not the file that was written: it is changed"
CHECKSUM = r"tensors\.safetensors .* it is truncated or changed"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "tensors-first-byte": (flip(TENSORS, 0), CHECKSUM),
    "tensors-header": (flip(TENSORS, 0.1), CHECKSUM),
    "tensors-last-byte": (flip(TENSORS, 1), CHECKSUM),
    "tensors-cut": (cut(TENSORS, 0.9), CHECKSUM),
    "tensors-empty": (cut(TENSORS, 0), CHECKSUM),
    "tensors-longer": (longer, CHECKSUM),
    "tensors-of-another": (other_tensors, CHECKSUM),
    "tensors-missing": (lambda path: (path / TENSORS).unlink(), NO_TENSORS + r" \(FileNotFoundError"),
    "tensors-folder": (folder_of_that_name(TENSORS), NO_TENSORS + r" \(IsADirectoryError"),
    "state-cut": (cut(STATE, 0.5), NO_STATE),
    "state-empty": (cut(STATE, 0), NO_STATE),
    "state-missing": (lambda path: (path / STATE).unlink(), r"state\.json is not .*FileNotFoundError"),
    "state-folder": (folder_of_that_name(STATE), r"state\.json is not .*IsADirectoryError"),
    "state-text": (become(STATE, b"not json"), NO_STATE),
    "state-bytes": (become(STATE, bytes(range(256))), NO_STATE),
    "state-pickle": (become(STATE, pickle.dumps({"format": 1})), NO_STATE),
    "state-list": (become(STATE, b"[1, 2]"), NO_STATE),
    "state-number": (become(STATE, b"7"), NO_STATE),
    "state-null": (become(STATE, b"null"), NO_STATE),
    "state-empty-dict": (become(STATE, b"{}"), r"state\.json is not .*KeyError: 'format'"),
    "no-owner": (change_state(lambda facts: facts.pop("owner")), r"state\.json is not .*KeyError: 'owner'"),
    "no-checksum": (change_state(lambda facts: facts.pop(TENSORS)), NO_TENSORS),
    "no-state": (change_state(lambda facts: facts.pop("state")), NO_TENSORS),
    "unknown-tag": (change_state(lambda facts: facts.update(state={"module": "os"})), r"no value is tagged 'module'"),
    "two-tags": (change_state(lambda facts: facts.update(state={"list": [], "tuple": []})), NO_TENSORS),
    "no-such-tensor": (change_state(lambda facts: facts.update(state={"tensor": "99"})), NO_TENSORS),
    "digit-flipped": (digit_flipped, CHANGED),
    "no-checksum-of-the-state": (drop_checksum, CHANGED),
    "step-changed": (change_state(lambda facts: facts.update(step=-5), signed=False), CHANGED),
    "step-text": (change_state(lambda facts: facts.update(step="abc"), signed=False), CHANGED),
    "state-changed": (change_state(lambda facts: facts.update(state=5), signed=False), CHANGED),
    "checksum-of-the-tensors": (change_state(lambda facts: facts.update({TENSORS: "0"}), signed=False), CHANGED),
    "step-negative": (
        change_state(lambda facts: facts.update(step=-5)),
        r"step-000000007 holds the state of step -5, expected that of step 7: delete",
    ),
    "step-missing": (change_state(lambda facts: facts.pop("step")), r"holds the state of step None, expected that of"),
    "newer-format": (
        change_state(lambda facts: facts.update(format=3)),
        r"has checkpoint format 3, expected 2: .* the version that wrote it, or delete",
    ),
    "older-format": (
        change_state(lambda facts: facts.update(format=1)),
        r"has checkpoint format 1, expected 2: .* the version that wrote it, or delete",
    ),
    "format-text": (change_state(lambda facts: facts.update(format="2")), r"has checkpoint format 2, expected 2"),
    "other-lr": (
        change_state(lambda facts: facts["owner"].update(lr=0.3)),
        r"belongs to another trial \(lr: expected 0\.30000000000000004, got 0\.3\): delete",
    ),
    "first-of-two": (
        change_state(lambda facts: facts["owner"].update(seed=4, arm="plain")),
        r"belongs to another trial \(arm: expected 'rezero', got 'plain'\): delete",
    ),
    "owner-has-less": (
        change_state(lambda facts: facts["owner"].pop("seed")),
        r"belongs to another trial \(seed: expected 0, got 'nothing'\)",
    ),
    "owner-has-more": (
        change_state(lambda facts: facts["owner"].update(colour="red")),
        r"belongs to another trial \(colour: expected 'nothing', got 'red'\)",
    ),
    "owner-is-text": (change_state(lambda facts: facts.update(owner="me")), r"belongs to another trial \(.*got 'me'"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_one_line(place: Checkpoints, damage: Callable[[Path], None], message: str) -> None:
    """A checkpoint that is not the one that was written is a UsageError of one line that says what to delete."""
    place.save(7, {"weight": torch.arange(5.0), "name": "é", "seven": 7})
    damage(place.folder / "step-000000007")
    before = tree(place.folder)
    assert place.latest() == 7
    with pytest.raises(UsageError, match=message) as caught:
        place.load(7)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"delete {place.folder} to start this trial again")
    assert tree(place.folder) == before


class Payload:
    """What runs as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickled(path: Path, protocol: int) -> bytes:
    return pickle.dumps(Payload(path), protocol=protocol)


def saved_by_torch(path: Path, *, as_zip: bool) -> bytes:
    file = path.with_name("saved.pt")
    torch.save({"0": torch.zeros(2), "payload": Payload(path)}, file, _use_new_zipfile_serialization=as_zip)
    return file.read_bytes()


PICKLES: dict[str, Callable[[Path], bytes]] = {
    **{f"protocol-{protocol}": lambda path, p=protocol: pickled(path, p) for protocol in range(6)},
    "torch-zip": lambda path: saved_by_torch(path, as_zip=True),
    "torch-legacy": lambda path: saved_by_torch(path, as_zip=False),
}


@pytest.mark.parametrize("checksum", ["its-own", "the-old-one"])
@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
def test_a_pickle_is_never_executed(
    tmp_path: Path, place: Checkpoints, make: Callable[[Path], bytes], checksum: str
) -> None:
    """A pickle in the place of the tensors or of the state is refused, and what it would run does not run."""
    trap = tmp_path / "executed"
    content = make(trap)
    assert not trap.exists()
    if (saved := trap.with_name("saved.pt")).exists():
        torch.load(saved, weights_only=False)
    else:
        pickle.loads(content)  # noqa: S301 - this is what must not happen
    assert trap.exists()
    trap.unlink()

    place.save(7, {"weight": torch.arange(5.0)})
    path = place.folder / "step-000000007"
    (path / TENSORS).write_bytes(content)
    if checksum == "its-own":
        digest = hashlib.sha256(content).hexdigest()
        change_state(lambda facts: facts.update({TENSORS: digest}))(path)
    with pytest.raises(UsageError, match=r"tensors\.safetensors (cannot be used|is not the file)") as caught:
        place.load(7)
    assert "\n" not in str(caught.value)
    assert not trap.exists()

    (path / STATE).write_bytes(content)
    with pytest.raises(UsageError, match=NO_STATE) as caught:
        place.load(7)
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_what_torch_saves_is_called_a_pickle(place: Checkpoints) -> None:
    """A file of torch.save, whatever its age, is named for what it is."""
    place.save(7, {"weight": torch.arange(5.0)})
    for as_zip in (True, False):
        path = place.folder / "step-000000007" / TENSORS
        torch.save({"0": torch.arange(5.0)}, path, _use_new_zipfile_serialization=as_zip)
        with pytest.raises(UsageError, match=r"it is a pickle, and pickles are never loaded"):
            place.load(7)


def test_no_file_is_a_pickle(place: Checkpoints) -> None:
    """What is written is JSON and safetensors: neither begins as a pickle or as the archive of torch.save does."""
    place.save(7, {"weight": torch.arange(5.0), "count": Counter([1])})
    path = place.folder / "step-000000007"
    json.loads((path / STATE).read_text(encoding="utf-8"))
    content = (path / TENSORS).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["0"]["shape"] == [5]
    assert {file.name for file in path.iterdir()} == {STATE, TENSORS}
