"""How long until the first step: imports, and building, tracing and compiling it?

Every figure is of a fresh process; processes of all kinds take turns.
"""

import argparse
import subprocess
import sys
from typing import Any

from benchmarks.timing import compare, header, itemized, listed, race, table

BAR = 1.3
IMPORTS = {"import jax": "import jax", "import optax": "import optax"}
IMPORTS |= {"import neuron_optax": "import neuron_optax"}
STEP = """
import jax, jax.numpy as jnp, {package}
params = {{f"layer_{{n}}": {{"kernel": jnp.ones((256, 256))}} for n in range(24)}}
optimizer = {make}(1e-3)
state = optimizer.init(params)
step = jax.jit(optimizer.update)
jax.block_until_ready(step(params, state, params))
"""
FIRST_STEPS = {
    f"first step, {make}": STEP.format(package=make.split(".")[0], make=make)
    for make in (
        *("optax.adam", "optax.adagrad"),
        *("neuron_optax.adam_mini", "neuron_optax.neuron_adagrad"),
    )
}
BASELINES = {
    **dict.fromkeys(IMPORTS, "import optax"),
    **dict.fromkeys(FIRST_STEPS, "first step, optax.adam"),
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print one line per kind of process, and the bar."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup", description=__doc__
    )
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--least", type=int, default=3, help="processes of each kind")
    options = parser.parse_args(arguments)
    if options.least < 2:
        parser.error(f"needs --least of 2 or more, got {options.least}")
    lines = header("benchmarks.startup", arguments, leaves="24 of (256, 256)")
    print(itemized(lines))
    codes = IMPORTS | FIRST_STEPS
    steps = {name: lambda code=code: run(code) for name, code in codes.items()}
    calls = race(steps, options.seconds, options.least, title="processes")
    found = {
        name: compare(calls[name], calls[base]) for name, base in BASELINES.items()
    }
    rows = [
        [
            *(name, f"{took.best:.2f}", listed(took.quartiles)),
            *(BASELINES[name], f"{took.ratio:.2f}", listed(took.by_round)),
        ]
        for name, took in found.items()
    ]
    head = ["process", "min s", "quartiles s", "beside", "ratio of min", "by round"]
    print(table(head, rows))
    imported = found["import neuron_optax"]
    sign = "reached" if imported.ratio < BAR else "missed"
    print(
        f"- import neuron_optax / import optax: {imported.ratio:.2f} by the minima, "
        f"{imported.by_round[1]:.2f} in the median round; bar {BAR:.2f}: {sign}"
    )
    return {"header": lines, **{name: of._asdict() for name, of in found.items()}}


def run(code: str) -> None:
    """Run a process to its end."""
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    main()
