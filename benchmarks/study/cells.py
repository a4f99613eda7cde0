"""What a cell of a table says of a contender."""

import math

from benchmarks.study.plan import EXPLAINED, SENSITIVE
from benchmarks.study.standings import ADAM, Standing, Standings, beside

HUGE = 1e3  # losses from which on digits after the point say nothing


def is_variant(name: str) -> bool:
    """Whether a contender is there for what another one is sensitive to."""
    return name in SENSITIVE or name in EXPLAINED


def redistributed(name: str) -> bool:
    """Whether the factors of a contender's layers have the mean 1."""
    return name.endswith(", redistributed")


def against_adam(placed: Standings, name: str) -> str:
    """Return the share by which the loss exceeds Adam's, and in how many seeds."""
    return against(placed, name, ADAM)


def against(placed: Standings, name: str, other: str, measured: str = "loss") -> str:
    """Return the share by which one exceeds another, and in how many seeds it is less.

    Args:
      placed: on a problem.
      name: of who is compared.
      other: whom with.
      measured: what of both.
    """
    found = beside(placed[name], placed[other], measured)
    if name == other:
        return "0"
    if not math.isfinite(found.share):
        return "diverges"
    return f"{found.share:+.1%} ({found.better} of {found.seeds})"


def tried_rate(of: Standing) -> str:
    """Return the best rate, and whether it is the lowest or highest of those tried."""
    if not of.at_edge:
        return f"{of.rate:g}"
    return f"{'<' if of.rate == of.tried[0].rate else '>'} {of.rate:g}"


def losses(of: Standing, measured: str = "loss") -> str:
    """Return median, least and largest of the seeds."""
    found = of.test(measured)
    if math.isinf(of.median(measured)):
        return "diverges"
    middle, least, most = (
        f"{loss:.4f}" if loss < HUGE else f"{loss:.1e}"
        for loss in (of.median(measured), min(found), max(found))
    )
    return f"{middle} ({least} to {most})"


def spread(rates: list[float]) -> str:
    """Return the decades from the least rate to the largest."""
    least, largest = rates[0], rates[-1]
    return f"{math.log10(largest / least):.1f}" if 0 < least <= largest else ""
