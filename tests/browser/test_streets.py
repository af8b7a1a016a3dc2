"""Street maps in a real browser: each kind of tile source by setting, made of a small extract of OpenStreetMap's format.

tippecanoe builds the tiles, in the environment that `make map-environment` makes.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from services.client import demo
from services.client import mesh as meshes
from services.client.actors import Alerts
from services.client.mesh import MeshConnection
from tests.browser.driver import HERE, Browser, browser
from tests.support.common.mesh import PATIENCE_S, RunningMesh
from tests.support.common.ports import free_port
from tests.support.common.processes import Service
from tools import build_streets

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = HERE.parents[1]
MAP_PYTHON = ROOT / ".venv-map" / "bin" / "python"
PAGE = "police"
MAGENTA = (255, 0, 255)
LIGHT_STREET = (0xC3, 0xCC, 0xD6)
"""Colour of a small street on the light map."""
CREDIT = "© the agency's mapmaker"
FILES = {".pmtiles": "application/octet-stream", ".pbf": "application/x-protobuf", ".png": "image/png"}


def extract() -> str:
    """A made-up grid of streets round the demo's home with an address at each crossing and a station, in OpenStreetMap's XML."""
    lat, lon = demo.HOME.lat_deg, demo.HOME.lon_deg
    nodes, ways = [], []
    for row in range(-8, 9):
        for column in range(-8, 9):
            at = f'lat="{lat + row * 0.001:.6f}" lon="{lon + column * 0.00125:.6f}"'
            address = f"{_tag('addr:street', f'금곡로{row + 8}길')}{_tag('addr:housenumber', str(2 * column + 17))}"
            nodes.append(f'<node id="{100 * (row + 8) + column + 8 + 1}" {at}>{address}</node>')
    for number in range(17):
        east = "".join(f'<nd ref="{100 * number + column + 1}"/>' for column in range(17))
        north = "".join(f'<nd ref="{100 * row + number + 1}"/>' for row in range(17))
        ways.append(
            f'<way id="{9_000 + number}">{east}<tag k="highway" v="residential"/>{_name(f"금곡로{number}길")}</way>'
        )
        ways.append(
            f'<way id="{9_100 + number}">{north}<tag k="highway" v="residential"/>{_name(f"홍유릉로{number}길")}</way>'
        )
    station = f'<node id="8000" lat="{lat + 0.003}" lon="{lon + 0.003}"><tag k="railway" v="station"/>{_name("금곡역")}</node>'
    return f'<?xml version="1.0" encoding="UTF-8"?><osm version="0.6">{"".join(nodes)}{station}{"".join(ways)}</osm>'


def _name(name: str) -> str:
    return _tag("name", name)


def _tag(key: str, value: str) -> str:
    return f'<tag k="{key}" v="{value}"/>'


def png(colour: tuple[int, int, int]) -> bytes:
    """A picture of one colour, 256 by 256 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = 256
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = (b"\x00" + bytes(colour) * side) * side
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@dataclass
class TileServer:
    """An agency's web server of tiles."""

    folder: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """Paths that the browser asked for."""

    async def file(self, request: web.Request) -> web.StreamResponse:
        """Serves a file, of which a browser may ask for byte ranges. All pictures are magenta."""
        self.asked.append(request.path)
        allowed = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "ETag, Content-Range"}
        path = self.folder / request.path.lstrip("/")
        if path.suffix == ".png":
            return web.Response(body=png(MAGENTA), content_type="image/png", headers=allowed)
        if not path.is_file():
            return web.Response(status=204, headers=allowed)  # no street in this tile
        return web.FileResponse(path, headers={**allowed, "Content-Type": FILES[path.suffix]})


@asynccontextmanager
async def tile_server(folder: Path) -> AsyncIterator[TileServer]:
    server = TileServer(folder)
    app = web.Application()
    app.router.add_get("/{path:.*}", server.file)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port := free_port())
    await site.start()
    server.url = f"http://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


def build_tiles(folder: Path) -> None:
    """Builds the extract as a PMTiles file, by the documented command, and as a folder of tiles without addresses."""
    assert MAP_PYTHON.exists(), "needs tippecanoe: make map-environment"
    source, file = folder / "region.osm", folder / "streets.pmtiles"
    source.write_text(extract())
    subprocess.run((MAP_PYTHON, ROOT / "tools" / "build_streets.py", source, file), check=True, timeout=120)
    features = folder / "features.geojsonl"
    with source.open("rb") as opened, features.open("w") as out:
        made = (feature for feature in build_streets.features(opened) if feature["tippecanoe"]["layer"] != "address")
        out.writelines(json.dumps(feature) + "\n" for feature in made)
    options = ("--quiet", "-Z7", "-z14", "-r1", "--no-tile-compression", "-e", folder / "tiles")
    subprocess.run((MAP_PYTHON.with_name("tippecanoe"), *options, features), check=True, timeout=120)


@dataclass
class Streets:
    """The demo up to its offers, a server of tiles, and consoles that use it."""

    now: MeshConnection
    browser: Browser
    tiles: TileServer
    incident_id: str
    folder: Path
    consoles: list[Service] = field(default_factory=list)

    async def open(self, address: str, language: str = "ko") -> str:
        """Starts a console with this street map, and opens the incident in a page of its own. Returns the page's name."""
        port, page = free_port(), f"{PAGE}-{len(self.consoles)}"
        env = {
            "TANDEM_PORT": str(port),
            "TANDEM_DATA_DIR": str(self.folder / page),
            "TANDEM_DEV_SECRET": self.now.dev_secret,
            "TANDEM_STREETS": address,
            "TANDEM_STREETS_ATTRIBUTION": "" if address.endswith(".pmtiles") else CREDIT,
            "TANDEM_REGISTRY": f"ipv4:{self.now.addresses['registry']}",
            "TANDEM_INGEST": meshes.target_of([self._address("ingest")]),
            "TANDEM_GEOFENCE": meshes.target_of([self._address("geofence")]),
            "TANDEM_DISPATCH_PROBATION": f"ipv4:{self.now.addresses['dispatch-probation']}",
            "TANDEM_DISPATCH_POLICE": f"ipv4:{self.now.addresses['dispatch-police']}",
        }
        console = Service("services.console", env, self.folder / f"{page}.log")
        self.consoles.append(console)
        console.start()
        await self._until_up(port)
        url = f"http://127.0.0.1:{port}"
        await self.browser("prefer", page=page, scheme="light", language=language)
        await self.browser.sign_in(page, url, PAGE, language)
        # The most urgent incident is chosen by itself, and this one is alone.
        await self.browser.until(page, f"map.dataset.fitted === '{self.incident_id}'", PATIENCE_S)
        return page

    def _address(self, name: str) -> str:
        return next(address for process, address in self.now.addresses.items() if process.startswith(name))

    async def _until_up(self, port: int) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.1)
                else:
                    writer.close()
                    return

    async def until_coloured(self, page: str, colour: tuple[int, int, int], least: int) -> None:
        """Waits until so many pixels of the map have about this colour."""
        count = 0
        for _ in range(100):
            colours = await self.browser("colours", page=page, selector="#map canvas", like=list(colour))
            count = int(colours)
            if count >= least:
                return
        raise AssertionError(f"{count} pixels of {colour}, not {least}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def streets(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Streets]:
    folder = tmp_path_factory.mktemp("tiles")
    build_tiles(folder)
    plan = demo.new_plan()
    async with (
        browser() as seen,
        tile_server(folder) as tiles,
        meshes.connect(mesh.now) as clients,
        demo.stage(clients, plan) as stage,
        Alerts(clients, (plan.id("order"),)) as alerts,
    ):
        for name, _, act in demo.STEPS:
            await act(stage)
            if name == "respond":
                break
        incident_id = next(seen.alert.incident_id for seen in alerts.seen if seen.alert.incident_id)
        opened = Streets(mesh.now, seen, tiles, incident_id, folder)
        try:
            yield opened
        finally:
            for console in opened.consoles:
                console.kill()


async def test_a_pmtiles_file_of_an_extract_is_drawn_and_names_the_address_and_the_station(streets: Streets) -> None:
    page = await streets.open(f"{streets.tiles.url}/streets.pmtiles")
    where = "document.querySelector('#card-where').textContent"
    address = "금곡동 금곡로\\d+길 \\d+(에서 [동서남북]+쪽 \\d+ m)?"
    await streets.browser.until(page, f"/{address}, 금곡역에서 [동서남북]+쪽 \\d+ m/.test({where})")
    await streets.until_coloured(page, LIGHT_STREET, least=500)
    assert "OpenStreetMap" in (await streets.browser("text", page=page, selector=".maplibregl-ctrl-attrib"))[0]
    found = await streets.browser("axe", page=page)
    assert [finding for finding in found if finding["impact"] in ("serious", "critical")] == []
    if folder := os.environ.get("TANDEM_SHOTS"):
        await streets.browser("shot", page=page, path=f"{ROOT / folder}/console-live-streets-ko.png")


async def test_a_template_of_vector_tiles_is_drawn(streets: Streets) -> None:
    page = await streets.open(streets.tiles.url + "/tiles/{z}/{x}/{y}.pbf", language="en")
    where = "document.querySelector('#card-where').textContent"
    await streets.browser.until(page, f"/near .*로\\d+길, [0-9]+ m [a-z-]+ of 금곡역/.test({where})")
    await streets.until_coloured(page, LIGHT_STREET, least=500)
    assert CREDIT in (await streets.browser("text", page=page, selector=".maplibregl-ctrl-attrib"))[0]
    assert any(path.startswith("/tiles/") and path.endswith(".pbf") for path in streets.tiles.asked)


async def test_a_template_of_pictures_is_drawn_below_the_boundaries(streets: Streets) -> None:
    page = await streets.open(streets.tiles.url + "/pictures/{z}/{x}/{y}.png")
    await streets.until_coloured(page, MAGENTA, least=50_000)
    # The name becomes whole once the tiles of each of its areas have come.
    await streets.browser.until(page, "document.querySelector('#card-where').textContent.includes('중심에서')")
    where = await streets.browser("text", page=page, selector="#card-where")
    assert "금곡동" in where[0] and "중심에서" in where[0], "without streets, the town's centre says where"


async def test_a_server_that_is_away_leaves_the_map_of_boundaries_and_its_names(streets: Streets) -> None:
    for address in (f"http://127.0.0.1:{free_port()}/streets.pmtiles", f"{streets.tiles.url}/none.pmtiles"):
        page = await streets.open(address)
        await streets.browser.until(page, "document.querySelector('#card-where').textContent.includes('금곡동')")
        assert await streets.browser("eval", page=page, expression="document.querySelectorAll('.bad').length") == 0
