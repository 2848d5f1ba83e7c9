"""What does `import rezero` add to `import torch`, and how long does `rezero --help` take?

python benchmarks/import_time.py [--rounds 15]
"""

import statistics
import subprocess
import sys

from timing import interleave, make_parser, ratios, write_result

COMMANDS = {
    "import torch, safetensors": ["-c", "import torch, safetensors"],
    "rezero.ReZero": ["-c", "import torch, safetensors, rezero; rezero.ReZero"],
    "rezero --help": ["-m", "rezero", "--help"],
}


def run(arguments: list[str]) -> None:
    """Run a fresh interpreter to its end."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=15)
    arguments = parser.parse_args()
    calls = {name: (lambda command=command: run(command)) for name, command in COMMANDS.items()}
    seconds = interleave(calls, rounds=arguments.rounds, device="cpu")
    pairs = zip(seconds["rezero.ReZero"], seconds["import torch, safetensors"], strict=True)
    added = statistics.median(ours - torch for ours, torch in pairs)
    for name, values in seconds.items():
        print(f"  {name:26} {statistics.median(values):.3f} s")
    print(f"  rezero.ReZero adds         {added:.3f} s (median of the differences)")
    print(
        "written:",
        write_result(
            "import-time", {"added_s": added, **ratios(seconds, to="import torch, safetensors")}, arguments.output
        ),
    )
