"""Defects that are put into the services one at a time, to prove that the judges bite.

`python -m tests.simulation --mutant NAME --seeds 50 --hours 0.34` runs one, and `--mutants` all of them.
"""

from __future__ import annotations

from tests.simulation.mutants import decision, edges, history, legs, messaging
from tests.simulation.mutants.replacing import Put, defects_of

MUTANTS: dict[str, Put] = {
    name: put for module in (history, messaging, decision, legs, edges) for name, put in defects_of(module).items()
}
"""All mutants by their names, which say what is wrong."""
