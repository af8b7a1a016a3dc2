// Layers of the live page's map, over the base map: subjects of open incidents, and rings and tracks of the chosen one.

import type { LayerSpecification } from "maplibre-gl";
import { METRES } from "./map";
import { palette } from "./palette";

/** Zoom from which names and accuracy circles are shown. */
const NEAR = 10;
/** Name and side of the image of a protected place, in pixels: larger than the mark of a person who is there. */
export const PLACE_IMAGE = "place";
const PLACE_PX = 26;
/** Edge without colour, which the map's shader needs, in pixels. */
const EDGE_PX = 2;

/** Returns the image of a protected place: a square, as in the legend. */
export function placeImage(): ImageData {
  const side = PLACE_PX + 2 * EDGE_PX;
  const image = new ImageData(side, side);
  for (let y = EDGE_PX; y < side - EDGE_PX; y++) image.data.fill(255, 4 * (y * side + EDGE_PX), 4 * (y * side + side - EDGE_PX));
  return image;
}

export function liveLayers(): LayerSpecification[] {
  const colors = palette();
  const color = ["match", ["get", "sort"], "wearer", colors.wearer, "unit", colors.unit, ["protected", "place"], colors.protected, colors.ink] as never;
  return [
    {
      id: "rings",
      type: "line",
      source: "chosen",
      filter: ["==", ["get", "kind"], "ring"],
      paint: { "line-color": color, "line-width": 1.5, "line-dasharray": [4, 3] },
    },
    {
      id: "tracks",
      type: "line",
      source: "chosen",
      filter: ["==", ["get", "kind"], "track"],
      layout: { "line-cap": "round", "line-join": "round" },
      paint: { "line-color": color, "line-width": 3, "line-opacity": 0.6 },
    },
    {
      id: "ring-names",
      type: "symbol",
      source: "chosen",
      filter: ["==", ["get", "kind"], "ring"],
      layout: { "symbol-placement": "line", "text-field": ["get", "name"], "text-font": ["sans-serif"], "text-size": 12 },
      paint: { "text-color": color, "text-halo-color": colors.paper, "text-halo-width": 2 },
    },
    {
      id: "accuracy",
      type: "circle",
      source: "subjects",
      minzoom: NEAR,
      filter: [">", ["get", "r0"], 0],
      paint: { "circle-radius": METRES, "circle-color": color, "circle-opacity": 0.15 },
    },
    // At low zoom, marks are small and have no edge: there may be thousands.
    {
      id: "marks-far",
      type: "circle",
      source: "subjects",
      maxzoom: NEAR,
      paint: { "circle-radius": 4, "circle-color": ["case", ["get", "unknown"], colors.old, color] as never },
    },
    {
      id: "places",
      type: "symbol",
      source: "subjects",
      minzoom: NEAR,
      filter: ["==", ["get", "sort"], "place"],
      layout: { "icon-image": PLACE_IMAGE, "icon-allow-overlap": true, "icon-ignore-placement": true },
      paint: { "icon-color": colors.protected },
    },
    {
      id: "marks",
      type: "circle",
      source: "subjects",
      minzoom: NEAR,
      filter: ["!=", ["get", "sort"], "place"],
      layout: { "circle-sort-key": ["match", ["get", "sort"], "wearer", 1, "unit", 2, 0] as never },
      paint: {
        "circle-radius": ["case", ["get", "grave"], 9, 6] as never,
        "circle-color": ["case", ["get", "unknown"], colors.paper, color] as never,
        "circle-stroke-color": ["case", ["get", "unknown"], color, colors.paper] as never,
        "circle-stroke-width": ["case", ["get", "unknown"], 3, 2] as never,
      },
    },
    {
      id: "names",
      type: "symbol",
      source: "subjects",
      minzoom: NEAR,
      layout: {
        "text-field": ["get", "name"],
        "text-font": ["sans-serif"],
        "text-size": 13,
        "symbol-sort-key": ["match", ["get", "sort"], "wearer", 0, "unit", 1, 2] as never,
        "text-variable-anchor": ["top", "bottom", "right", "left"],
        "text-radial-offset": 1.3,
      },
      paint: { "text-color": colors.ink, "text-halo-color": colors.paper, "text-halo-width": 2 },
    },
  ];
}
