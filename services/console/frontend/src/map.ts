// The base map: boundaries of Korea from a PMTiles file. No font, tile or style comes from elsewhere.

import { AttributionControl, Map as MapLibre, NavigationControl, ScaleControl, addProtocol, setWorkerUrl } from "maplibre-gl";
import type { LayerSpecification, StyleSpecification } from "maplibre-gl";
import workerUrl from "maplibre-gl/dist/maplibre-gl-worker.mjs?worker&url";
import "maplibre-gl/dist/maplibre-gl.css";
import { Protocol } from "pmtiles";
import type { Page } from "./page";
import { onThemeChange, palette } from "./palette";
import type { Palette } from "./palette";
import { STREETS, openStreets } from "./streets";
import type { Streets } from "./streets";
import "./app.css";
import "./live.css";
import "./theme.css";

// MapLibre's default worker URL would be missing from the build.
setWorkerUrl(workerUrl);
addProtocol("pmtiles", new Protocol({ metadata: true }).tile); // the metadata name whom the licence wants to be named

/** Source of the base map. */
export const SOURCE = "korea";
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

function area(layer: string): LayerSpecification {
  return { id: `${layer}-area`, type: "fill", source: SOURCE, "source-layer": layer, paint: { "fill-opacity": 0 } };
}

function label(layer: string, size: number, minzoom: number, maxzoom: number, colors: Palette): LayerSpecification {
  return {
    id: `${layer}-label`,
    type: "symbol",
    source: SOURCE,
    "source-layer": `${layer}-label`,
    minzoom,
    maxzoom,
    layout: { "text-field": ["get", "name"], "text-font": FONTS, "text-size": size },
    paint: { "text-color": colors.label, "text-halo-color": colors.halo, "text-halo-width": 1.5 },
  };
}

function baseLayers(colors: Palette, streets: Streets | undefined): LayerSpecification[] {
  return [
    { id: "sea", type: "background", paint: { "background-color": colors.sea } },
    { id: "land", type: "fill", source: SOURCE, "source-layer": "province", paint: { "fill-color": colors.land, "fill-antialias": false } }, // the boundaries draw its edge
    ...["province", "district", "town"].map(area),
    ...(streets?.layers(colors) ?? []),
    { ...boundary("town", colors.town, 0.8), minzoom: 9 },
    boundary("district", colors.district, 1),
    boundary("province", colors.province, 1.4),
    label("province", 14, 4, 8, colors),
    label("district", 13, 8, 10.5, colors),
    label("town", 12, 10.5, 24, colors),
  ];
}

/** Addresses of the maps, as the page has them. */
export type MapAddresses = Pick<Page, "tiles" | "streets" | "streetsAttribution">;

/** Opens the base map, with the street map if there is one. `attribution` is that of the base map. */
export async function openMap(container: HTMLElement, page: MapAddresses, attribution: string): Promise<MapLibre> {
  const url = new URL(page.tiles, location.href).href;
  const opened = page.streets ? await openStreets(page.streets, page.streetsAttribution) : undefined;
  const style: StyleSpecification = {
    version: 8,
    sources: { [SOURCE]: { type: "vector", url: `pmtiles://${url}`, attribution }, ...(opened && { [STREETS]: opened.source }) },
    layers: baseLayers(palette(), opened),
  };
  const map = new MapLibre({
    container,
    style,
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
  onThemeChange(() => repaint(map, baseLayers(palette(), opened)));
  return new Promise((resolve) => map.once("load", () => resolve(map)));
}

/** Gives the layers of a map the colours of a new theme. */
export function repaint(map: MapLibre, layers: LayerSpecification[]): void {
  for (const layer of layers) {
    for (const [name, value] of Object.entries(layer.paint ?? {})) map.setPaintProperty(layer.id, name as never, value as never);
  }
}

/** Radius of a circle layer in metres. Features give `r0`, their radius in pixels at zoom 0. */
export const METRES = ["interpolate", ["exponential", 2], ["zoom"], 0, ["get", "r0"], 22, ["*", ["get", "r0"], 2 ** 22]] as never;

/** Converts metres at a latitude to pixels at zoom 0. */
export function pixelsAtZoom0(metres: number, latDeg: number): number {
  return metres / (78_271.484 * Math.cos((latDeg * Math.PI) / 180));
}
