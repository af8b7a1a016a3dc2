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

HARMLESS: dict[str, str] = {
    "acknowledgements_are_lost": "effects are idempotent, so repeated messages only cost time",
    "alerts_that_were_missed_are_not_found": "a second line of defence: the reader misses none",
    "readers_do_not_see_a_gap": "a message is lost only with its connection, and that ends the session",
    "readers_do_not_notice_a_reconnect": "a second line of defence: a missed heartbeat ends the session too",
    "drafts_of_checkpoints_are_not_dropped": "a draft is never read",
    "lost_steps_are_not_republished": "a second line of defence: a leg also publishes steps that stay unpublished in its store",
    "unpublished_steps_are_forgotten_at_a_restart": "a second line of defence: the same search for unpublished steps",
    "checkpoints_do_not_wait_for_verification": "a second line of defence: recovery drops a checkpoint whose alerts are lost",
}
"""Mutants that break no invariant by themselves, with the reason."""
