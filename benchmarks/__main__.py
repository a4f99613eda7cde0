"""All that is said about speed, in one command: tables, ``speed.json``, a picture.

``python -m benchmarks | tee benchmarks/SPEED.md`` keeps the tables.

About ten minutes on two cores. ``--quick`` shows in a minute that it runs.
"""

import argparse
import json
from pathlib import Path

from benchmarks import growth, startup, step_time

PARTS = {"step_time": step_time.main, "growth": growth.main, "startup": startup.main}
QUICK = {
    "step_time": [
        *("--workloads", "convolutional", "--seconds", "1", "--only", "adam_mini"),
        "torch.Adam fused",
    ],
    "growth": ["--width", "64", "--leaves", "48", "--seconds", "0.1"],
    "startup": ["--seconds", "1", "--least", "2"],
}


def main(arguments: list[str] | None = None) -> None:
    """Run every part; keep what each found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, and no figures")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks"))
    options = parser.parse_args(arguments)
    found, path = {}, options.folder / "speed.json"
    for name, run in PARTS.items():
        print(f"# {name}\n")
        figure = ["--figure", str(options.folder / "growth.png")]
        said = QUICK[name] if options.quick else []
        found[name] = run(said + figure * (name == "growth"))
        path.write_text(json.dumps(found) + "\n")
        print()
    print(f"kept in {path}")


if __name__ == "__main__":
    main()
