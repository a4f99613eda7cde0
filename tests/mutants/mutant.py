"""What a mutant is."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """Replace ``right`` by ``wrong`` in ``file``; ``tests`` must then fail."""

    file: str
    right: str
    wrong: str
    tests: str


PARITY = "tests/test_parity.py -k neuron"
