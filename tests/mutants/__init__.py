"""Small errors a reviewer could make, each with the tests that must notice it."""

from tests.mutants.family import FAMILY
from tests.mutants.layouts import LAYOUTS
from tests.mutants.parts import PARTS
from tests.mutants.readers import READERS
from tests.mutants.rows import ROWS
from tests.mutants.scale import SCALE

MUTANTS = {**PARTS, **LAYOUTS, **FAMILY, **SCALE, **ROWS, **READERS}
