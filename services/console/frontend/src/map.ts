// The base map: boundaries of Korea from a PMTiles file. No font, tile or style comes from elsewhere.

import { AttributionControl, Map as MapLibre, NavigationControl, ScaleControl, addProtocol, setWorkerUrl } from "maplibre-gl";
import type { LayerSpecification, StyleSpecification } from "maplibre-gl";
import workerUrl from "maplibre-gl/dist/maplibre-gl-worker.mjs?worker&url";
import "maplibre-gl/dist/maplibre-gl.css";
import { Protocol } from "pmtiles";
import "./app.css";
import { followTheme, themed } from "./theme";

// MapLibre's default worker URL would be missing from the build.
setWorkerUrl(workerUrl);
addProtocol("pmtiles", new Protocol().tile);

const SOURCE = "korea";
const FONTS = ["sans-serif"];

function boundary(layer: string, color: string, width: number): LayerSpecification {
  return {
    id: layer,
    type: "line",
    source: SOURCE,
    "source-layer": layer,
    paint: { "line-color": color, "line-width": width },
  };
}

function label(layer: string, size: number, minzoom: number, maxzoom: number): LayerSpecification {
  return {
    id: `${layer}-label`,
    type: "symbol",
    source: SOURCE,
    "source-layer": `${layer}-label`,
    minzoom,
    maxzoom,
    layout: { "text-field": ["get", "name"], "text-font": FONTS, "text-size": size },
    paint: { "text-color": "--map-label", "text-halo-color": "--map-halo", "text-halo-width": 1.5 },
  };
}

function style(tiles: string, attribution: string): StyleSpecification {
  const url = new URL(tiles, location.href).href;
  return {
    version: 8,
    sources: { [SOURCE]: { type: "vector", url: `pmtiles://${url}`, attribution } },
    layers: [
      { id: "sea", type: "background", paint: { "background-color": "--map-sea" } },
      { id: "land", type: "fill", source: SOURCE, "source-layer": "province", paint: { "fill-color": "--map-land" } },
      { ...boundary("town", "--map-town", 0.8), minzoom: 9 },
      boundary("district", "--map-district", 1),
      boundary("province", "--map-province", 1.4),
      label("province", 14, 4, 8),
      label("district", 13, 8, 10.5),
      label("town", 12, 10.5, 24),
    ],
  };
}

export function openMap(container: HTMLElement, tiles: string, attribution: string): Promise<MapLibre> {
  const base = style(tiles, attribution);
  const map = new MapLibre({
    container,
    style: { ...base, layers: base.layers.map(themed) },
    center: [127.6, 36.4],
    zoom: 6,
    maxZoom: 18,
    dragRotate: false,
    pitchWithRotate: false,
    attributionControl: false,
    fadeDuration: 0, // fading labels would cost 0.3 s of frames after each change
    localIdeographFontFamily: "sans-serif",
  });
  map.addControl(new AttributionControl({ compact: false }));
  map.addControl(new NavigationControl({ showCompass: false }), "top-right");
  map.addControl(new ScaleControl({ unit: "metric" }), "bottom-left");
  for (const layer of base.layers) followTheme(map, layer);
  return new Promise((resolve) => map.once("load", () => resolve(map)));
}

/** Radius of a circle layer in metres. Features give `r0`, their radius in pixels at zoom 0. */
export const METRES = ["interpolate", ["exponential", 2], ["zoom"], 0, ["get", "r0"], 22, ["*", ["get", "r0"], 2 ** 22]] as never;

/** Converts metres at a latitude to pixels at zoom 0. */
export function pixelsAtZoom0(metres: number, latDeg: number): number {
  return metres / (78_271.484 * Math.cos((latDeg * Math.PI) / 180));
}
