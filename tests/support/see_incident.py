"""Sign in at the console of a mesh as the police, and read the page of its only incident: `python -m tests.support.see_incident URL`.

The incident's id comes on standard input, in the output of `tandem incidents`. Run it in the network in which the mesh runs.
"""

from __future__ import annotations

import asyncio
import re
import sys

from tests.support.console.console import visiting


async def main(url: str, listed: str) -> None:
    """Fails unless the page names the incident."""
    (incident_id,) = set(re.findall(r"incident-[0-9a-f]{20}", listed))
    async with visiting(url, True) as visitor:
        await visitor.read("/sign-in")
        status, text = await visitor.post("/sign-in", role="police", name="duty-1")
        assert status == 303, (status, text)
        assert incident_id in await visitor.read(f"/incidents/{incident_id}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.stdin.read()))
