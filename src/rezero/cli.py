"""The commands, thin: read the options, call the lab, show how it goes."""

# Nothing here imports torch until a command runs, so that --help answers at once.

import os
import re
import sqlite3
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import Number

from rezero.errors import UsageError
from rezero.interrupt import STOPPED
from rezero.options import HowMany, Place, Whole

__all__ = ["app", "run"]

app = App(
    name="rezero",
    help="Residual blocks whose gate starts at zero: compare them with other arms, honestly.",
    version=lambda: version("rezero-torch"),
    suppress_keyboard_interrupt=False,  # run() says what Ctrl-C leaves behind
)

OWN = "By default the task's own."
SCRIPT = Group("A script of your own", help="In the place of a task.", sort_key=0)
TITLES = ("The network", "How long", "How it learns", "How rates are chosen", "What is asked", "Where it runs")
SIZE, LENGTH, RATES, TUNING, QUESTION, MACHINE = (
    Group(title, help=OWN, sort_key=place) for place, title in enumerate(TITLES, 1)
)


def run(arguments: list[str]) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name.

    Returns:
        Exit code: 0 done, 1 for what ``--strict`` refuses, 2 for a request that cannot be carried out, 130 when stopped
        by Ctrl-C.
    """
    code: int | None = None
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (CycloptsError, UsageError, OSError, sqlite3.Error) as error:
        _complain(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        _complain(STOPPED)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            os._exit(130)  # what is left of the group may wait in its destructor for a process that has ended
        return 130
    return code or 0


def _complain(message: str) -> None:
    if is_first_process():  # all processes of a group find the same
        print(f"rezero: {message}", file=sys.stderr)


@app.command
def compare(
    task: str | None = None,
    /,
    *arguments: str,
    script: Annotated[Place | None, Parameter(group=SCRIPT)] = None,
    goal: Annotated[Literal["min", "max"] | None, Parameter(group=SCRIPT)] = None,
    time_limit: Annotated[float | None, Parameter(group=SCRIPT)] = None,
    retry: Annotated[bool, Parameter(group=SCRIPT, negative="")] = False,
    arms: str | None = None,
    seeds: Whole = None,
    output: Annotated[Place | None, Parameter(name=["--output", "-o"])] = None,
    log_with: Literal["tensorboard", "wandb", "trackio"] | None = None,
    depth: Annotated[Whole, Parameter(group=SIZE)] = None,
    width: Annotated[Whole, Parameter(group=SIZE)] = None,
    heads: Annotated[Whole, Parameter(group=SIZE)] = None,
    context: Annotated[Whole, Parameter(group=SIZE)] = None,
    embedding_std: Annotated[float | None, Parameter(group=SIZE)] = None,
    alpha: Annotated[float | None, Parameter(group=SIZE)] = None,
    data: Annotated[Place | None, Parameter(group=SIZE)] = None,
    epochs: Annotated[Whole, Parameter(group=LENGTH)] = None,
    steps: Annotated[Whole, Parameter(group=LENGTH)] = None,
    batch_size: Annotated[Whole, Parameter(group=LENGTH)] = None,
    measure_every: Annotated[Whole, Parameter(group=LENGTH)] = None,
    lr: Annotated[float | None, Parameter(group=RATES)] = None,
    alpha_lr: Annotated[float | None, Parameter(group=RATES)] = None,
    weight_decay: Annotated[float | None, Parameter(group=RATES)] = None,
    optimizer: Annotated[str | None, Parameter(group=RATES)] = None,
    schedule: Annotated[str | None, Parameter(group=RATES)] = None,
    warmup: Annotated[Whole, Parameter(group=RATES)] = None,
    clip: Annotated[float | None, Parameter(group=RATES)] = None,
    tune: Annotated[str | None, Parameter(group=TUNING)] = None,
    tune_seeds: Annotated[Whole, Parameter(group=TUNING)] = None,
    tune_over: Annotated[str | None, Parameter(group=TUNING)] = None,
    metric: Annotated[str | None, Parameter(group=QUESTION)] = None,
    baseline: Annotated[str | None, Parameter(group=QUESTION)] = None,
    target: Annotated[float | None, Parameter(group=QUESTION)] = None,
    resolve: Annotated[float | None, Parameter(group=QUESTION)] = None,
    device: Annotated[str | None, Parameter(group=MACHINE)] = None,
    threads: Annotated[Whole, Parameter(group=MACHINE)] = None,
    precision: Annotated[str | None, Parameter(group=MACHINE)] = None,
    accumulate: Annotated[Whole, Parameter(group=MACHINE)] = None,
    jobs: Annotated[Whole, Parameter(group=MACHINE)] = None,
    on: Annotated[str | None, Parameter(group=MACHINE)] = None,
    checkpoint_every: Annotated[float, Parameter(group=MACHINE, validator=Number(gt=0))] = 30.0,
) -> None:
    """Train the arms of a task, or of a script of your own, on paired seeds and report what came out.

    TASK is one of

    - fc-digits: a fully connected network on scikit-learn's digits; half a minute
    - fc-table: a fully connected network on a small data set: --data breast_cancer, digits, iris, wine, cifar10-1000
      or cifar10-5000
    - fc-cifar10: the paper's fully connected network on CIFAR-10
    - resnet-cifar10: the paper's ResNets on CIFAR-10
    - lm-text: a byte-level Transformer on Tiny Shakespeare, or on your own text with --data
    - lm-enwik8: a byte-level Transformer on the first 100 MB of Wikipedia

    A script of your own is run once a trial, with what stands behind `--`: rezero compare --script train.py
    --arms original,rezero --seeds 5 -- --epochs 3. It says `model = rezero.lab.arm(model, example_inputs)`,
    `rezero.lab.log(step, train_loss=..., val_accuracy=...)`, and reads `rezero.lab.seed()` and `rezero.lab.lr(0.001)`.
    Of the options below it takes those on arms, seeds, tuning, the question and jobs; --lr is a multiple of its own.

    Options that are left out have the task's own values, the paper's where it gives them. The study folder holds
    study.sqlite, report.html, verdict.txt and the charts as SVG and PNG. A study that was stopped or killed goes on
    when the same command is given again, and ends as if it had never been stopped. To share each batch between
    processes: torchrun --nproc-per-node N -m rezero compare ...

    Args:
        task: What to train.
        arguments: Behind `--`, what a script is given.
        script: A script of your own.
        goal: Whether low or high values of the metric are good; by default told by its name.
        time_limit: Seconds that a run of the script may take.
        retry: Run trials again that crashed, took too long or logged nothing; by default they are kept as they ended.
        arms: Residual formulas to compare, separated by commas: plain, plain-norm, residual, post-norm, pre-norm,
            rezero, skipinit, layerscale, fixup, deepnorm, gpt2. Not every task has all of them. By default the task's
            own.
            An arm can have settings of its own: "rezero lr=0.003, post-norm warmup=400". Of a script: original, rezero,
            and those that it defines itself.
        seeds: Number of paired seeds; by default the task's own, 5 for a script.
        output: Folder of the study. By default rezero-studies/TASK-KEY, where KEY stands for the options.
        log_with: A tracker that each trial is sent to, as a run of its own, once it has ended; by default none. It
            decides no number and can be given or left out at any time. TensorBoard's files go into the study's folder,
            as tensorboard; the others keep runs where they always do, in a project with the folder's name.
        depth: Number of residual blocks; of layers for a ResNet (6n + 2) or a Transformer.
        width: Width of the blocks; channels of the first stage for a ResNet.
        heads: Attention heads of a Transformer.
        context: Bytes that a Transformer sees at once.
        embedding_std: Standard deviation of a Transformer's embeddings at the start; by default each arm's own.
        alpha: Where gates start, in the arms that have some; by default at zero.
        data: fc-table: the name of a data set. lm-text: a text file (also .xz, .gz, .zip), or a folder of .txt files.
        epochs: Passes over the training set.
        steps: Optimizer steps, instead of epochs.
        batch_size: Examples a step.
        measure_every: Steps between measurements; by default one epoch, 50 steps for text.
        lr: Learning rate, the same for every arm; the middle of the table where rates are tuned.
        alpha_lr: Learning rate of the gates; by default that of everything else, as in the authors' code.
        weight_decay: Weight decay, in the place of the optimizer's own.
        optimizer: A class of torch.optim with options, such as "SGD momentum=0.9 weight_decay=1e-4".
        schedule: "constant", or a class of torch.optim.lr_scheduler with options, such as "CosineAnnealingLR" or
            "MultiStepLR milestones=100e,150e", where e stands for epochs.
        warmup: Steps over which the rates rise from near zero.
        clip: Largest norm of the gradient.
        tune: off, or how many rates every arm tries out, on seeds that the comparison does not use. The table is
            around --lr, two a decade, and grows for all arms where the best one of an arm lies at its edge.
        tune_seeds: Seeds that every rate is tried on.
        tune_over: What is tuned: lr, alpha-lr, weight-decay or warmup; several, as in "lr,alpha-lr", by a search with
            Optuna, where --tune says how many trials every arm gets.
        metric: The metric that decides: val_accuracy, val_loss or train_loss; by default the task's own. Of a script
            any that it logs; by default val_accuracy, eval_accuracy, val_loss, ..., train_loss, whichever comes first.
        baseline: The arm that the others are held against; by default the task's standard (pre-norm, residual for a
            ResNet) or, without it, the first.
        target: Value of the metric that speed is measured by, in percent for an accuracy of a task; by default the
            worst value at the end of the two arms that are compared.
        resolve: Difference that you want to be able to see, in points for an accuracy: how many seeds would it take?
        device: cpu, cuda, cuda:1, ...
        threads: CPU threads. Kept with the study, because results differ in their last bits between thread counts.
        precision: float32, or bf16 for bfloat16 autocast.
        accumulate: Parts that each batch is computed in, one after another, to save memory.
        jobs: Trials that run at once, each in a process of its own, with --threads threads each, and a GPU each.
        on: "ray" or "slurm" with options, in the place of this machine: "ray address=auto" takes those of ray.init,
            "slurm partition=gpu gpus_per_node=1" those of submitit. --jobs says how many trials run at once there.
        checkpoint_every: Seconds between checkpoints of the trial that runs.

    Raises:
        UsageError: If there are not so many jobs to be had, or the options do not fit together.
    """
    given: dict[str, Any] = {
        "arms": arms,
        "seeds": seeds,
        "depth": depth,
        "width": width,
        "heads": heads,
        "context": context,
        "embedding_std": embedding_std,
        "alpha": alpha,
        "data": None if data is None else str(data),
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "measure_every": measure_every,
        "lr": lr,
        "alpha_lr": alpha_lr,
        "weight_decay": weight_decay,
        "optimizer": optimizer,
        "schedule": schedule,
        "warmup": warmup,
        "clip": clip,
        "tune": None if tune is None else _read_tune(tune),
        "tune_seeds": tune_seeds,
        "tune_over": tune_over,
        "metric": metric,
        "device": device,
        "threads": threads,
        "precision": precision,
        "accumulate": accumulate,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if log_with is not None:
        from rezero.lab.sinks import check_tracker

        check_tracker(log_with)
    from rezero.comparing import Request
    from rezero.lab import TASKS

    request = Request(
        settings=given,
        question={"baseline": baseline, "target": target, "resolve": resolve},
        output=output,
        jobs=jobs,
        on=on,
        log_with=log_with,
        warn=_complain,
    )
    if script is not None:
        if task in TASKS:
            raise UsageError(f"expected a task or --script, not both: got {task} and {script}")
        words = tuple(arguments) if task is None else (task, *arguments)
        request.compare_script(script, words, goal=goal, time_limit=time_limit, retry=retry)
        return
    if task is None:
        raise UsageError("expected a task, such as fc-digits, or --script with a script of your own: rezero compare -h")
    own = {"--goal": goal, "--time-limit": time_limit, "--retry": retry or None}
    if wrong := [name for name, value in own.items() if value is not None] or list(arguments):
        raise UsageError(f"only a script takes {wrong[0]}: got it for the task {task}")
    request.compare_task(task, checkpoint_every=checkpoint_every, first=is_first_process())


@app.command
def download(name: str, /) -> None:
    """Download a data set into the cache, resuming and checking it.

    Args:
        name: cifar10 (170 MB), enwik8 (36 MB) or tinyshakespeare (1 MB).
    """
    from rezero.data.fetch import download as fetch
    from rezero.data.sources import find_source
    from rezero.waiting import bytes_bar

    find_source(name)
    with bytes_bar(name) as on_bytes:
        path = fetch(name, on_bytes=on_bytes)
    print(f"{name}: {path}")


@app.command
def report(
    folder: Place,
    /,
    *,
    baseline: str | None = None,
    target: float | None = None,
    resolve: float | None = None,
    metric: str | None = None,
    goal: Literal["min", "max"] | None = None,
) -> None:
    """Make the report of a study again, byte for byte, or ask something else of its numbers.

    Args:
        folder: Folder of the study.
        baseline: The arm that the others are held against.
        target: Value of the metric that speed is measured by, in percent for an accuracy of a task.
        resolve: Difference that you want to be able to see, in points for an accuracy.
        metric: Another metric to decide by, such as train_loss. It does not change by which one rates were chosen; a
            target or resolve that was asked of the other metric is given up.
        goal: Whether low or high values of it are good; by default told by its name.
    """
    from rezero.comparing import ask_again, tell
    from rezero.lab import Store

    with Store.open(folder) as store:
        ask_again(store, baseline=baseline, target=target, resolve=resolve, metric=metric, goal=goal)
        tell(store)


@app.command
def export(
    folder: Place,
    /,
    *,
    form: Annotated[Literal["csv", "parquet", "json"] | None, Parameter(name="--format")] = None,
    output: Annotated[Place | None, Parameter(name=["--output", "-o"])] = None,
    force: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write all numbers of a study as one table, a row a number, to stdout or into a file.

    The columns are arm, lr, seed, tuned (JSON), tuning, status, step, epoch, metric and value. Gates are the metrics
    alpha_0, alpha_1, ... from the input on. A value that is not finite is empty, in JSON and Parquet null. The same
    study gives the same bytes; of a study that runs it is what has been measured so far.

    Args:
        folder: Folder of the study.
        form: csv, json (a list of objects) or parquet (needs --output, and pip install 'rezero-torch[parquet]'); by
            default what the name of the file ends in, or csv.
        output: File; by default the table goes to stdout.
        force: Replace a file that is there; by default that is refused.
    """
    from rezero.lab import Store
    from rezero.lab.export import export as write
    from rezero.lab.export import kind_of

    kind = form or kind_of(output)
    with Store.open(folder) as store:
        write(store, kind, output, force=force)


def _read_tune(text: str) -> int:
    if text == "off":
        return 0
    if not text.isdecimal():
        raise UsageError(f"tune must be off, or the number of rates that every arm tries out: got {text!r}")
    return int(text)


@app.command
def inspect(spec: str, /, *, json: bool = False) -> None:
    """Print the residual additions of a model, and what converting it would gain and lose.

    The model is built without weights: this takes no memory, whatever its size.

    Args:
        spec: timm:NAME, hf:TYPE (a model type of transformers, such as hf:gpt2, in its default configuration), or
            package.module:function, a function without arguments that returns the model, or the model, its example
            arguments and its example keyword arguments.
        json: Print JSON.
    """
    from rezero.surgery.command import inspect_named

    inspect_named(spec, json=json)


@app.command
def diagnose(
    spec: str,
    /,
    *,
    output: Annotated[Place | None, Parameter(name=["--output", "-o"])] = None,
    singular_values: HowMany = "0",
    seed: Whole = 0,
    strict: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Check the gates of a model, and draw how signals and gradients go through it.

    The model is built with its initial weights. If it has no gates it is looked at without, then converted and looked
    at again; one without residual additions is looked at without. A single example is joined by itself with its last
    axis reversed, for a cosine needs two. The folder gets check.txt, diagnosis.json and the charts as SVG, PNG and
    HTML; what it held of these is replaced.

    Args:
        spec: timm:NAME, hf:TYPE (a model type of transformers in its default configuration), or
            package.module:function, a function without arguments that returns a model, also a trained one, and its
            example arguments: model, x or model, (x, y) or model, (), {"x": x}.
        output: Folder; by default rezero-diagnosis/MODEL.
        singular_values: How many of the largest singular values between the first and the last block are computed, or
            all, of up to 2,048.
        seed: Of the initial weights.
        strict: End with exit code 1 if a fault is found, after all is written.

    Returns:
        Exit code.
    """
    from rezero.diagnose.command import diagnose_named

    folder = output or Path("rezero-diagnosis") / re.sub(r"[^\w.-]+", "-", spec)
    return diagnose_named(spec, folder, singular_values=singular_values, seed=seed or 0, strict=strict)


@app.command
def reproduce(
    name: str | None = None,
    /,
    *,
    scale: Literal["laptop", "paper"] = "laptop",
    seeds: Whole = None,
    output: Annotated[Place | None, Parameter(name=["--output", "-o"])] = None,
    show: Annotated[bool, Parameter(name="--list", negative="")] = False,
) -> None:
    """Try again what a paper says; without a name, list what there is.

    The parts that are done are kept in rezero-studies: after Ctrl-C the same command goes on, and what is done is told
    again, with its date, not measured again.

    Args:
        name: Which of those that --list shows, or all.
        scale: laptop, for two cores, or paper, the paper's own size, for a GPU. With all: those that have it.
        seeds: Paired seeds, or rounds of what is timed; by default those of the published results.
        output: Folder of the results, in place of those that are there; by default results/papers/NAME, or
            results/papers/NAME-paper.
        show: Show what there is, the time it takes, and whether results are in this folder or it was begun.
    """
    from rezero.papers import check_name

    check_name(name or "all")
    from rezero.papers.command import list_all, reproduce_named

    results = Path("results/papers")
    if show or name is None:
        list_all(name or "all", scale, results)
    else:
        reproduce_named(name, scale, seeds, results, output)


def is_first_process() -> bool:
    """Return whether this process keeps the records: the only one, or the first that ``torchrun`` started."""
    rank, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return not (rank.isdecimal() and size.isdecimal() and 0 < int(rank) < int(size))
