// Names of the place at a position, from what the map has loaded: areas, the nearest address or street, and the nearest landmark or town
// with its distance.

import type { Map as MapLibre, MapGeoJSONFeature } from "maplibre-gl";
import { bearingDeg, distanceM, distanceToLineM } from "./geo";
import type { LonLat } from "./geo";
import { pixelsAtZoom0 } from "./map";
import { ADDRESSES, STREETS, STREET_LINES } from "./streets";

/** A named point, and how the position lies from it. */
export interface NamedPoint {
  name: string;
  distanceM: number;
  /** Bearing of the position as seen from the point, in degrees clockwise from north. */
  bearingDeg: number;
}

export interface NamedPlace {
  /** Areas in which the position lies, the greatest first. Empty where the map doesn't show it. */
  areas: string[];
  /** Nearest named street; empty for none. */
  street: string;
  /** Nearest address of the street map; only of a position that is exact enough for one. */
  address: NamedPoint | undefined;
  /** Nearest landmark of the street map. */
  landmark: NamedPoint | undefined;
  /** Nearest town of the base map. */
  town: NamedPoint | undefined;
}

/** Layers without colour that answer in which area a point lies, the greatest first. */
export const AREAS = ["province-area", "district-area", "town-area"];
/** Layers of named points in a street map: that of tools/build_streets.py, and those of OpenMapTiles. */
const LANDMARKS = ["landmark", "poi"];
/** Half the side of the square in which the nearest street is looked for, in pixels. */
const STREET_NEAR_PX = 40;
const ADDRESS_NEAR_M = 100;
/** Greatest accuracy radius of a position that has an address, in m: beyond it, the address would be a guess. */
const ADDRESS_ACCURACY_M = 50;
const LANDMARK_NEAR_M = 1_000;
const TOWN_NEAR_M = 10_000;

/** Returns what is known about a position and its accuracy in m. `base` is the base map's source. */
export function placeAt(map: MapLibre, base: string, at: LonLat, accuracyM: number): NamedPlace {
  const point = map.project(at);
  const areas = new Map(rendered(map, AREAS, point).map((feature) => [feature.layer.id, nameOf(feature)]));
  return {
    areas: AREAS.map((layer) => areas.get(layer) ?? "").filter(Boolean),
    street: nearestStreet(map, at),
    address: accuracyM <= ADDRESS_ACCURACY_M ? nearestAddress(map, at) : undefined,
    landmark: map.getSource(STREETS) && nearest(map, STREETS, LANDMARKS, at, LANDMARK_NEAR_M),
    town: nearest(map, base, ["town-label"], at, TOWN_NEAR_M),
  };
}

function nearestStreet(map: MapLibre, at: LonLat): string {
  const { x, y } = map.project(at);
  const square: [[number, number], [number, number]] = [
    [x - STREET_NEAR_PX, y - STREET_NEAR_PX],
    [x + STREET_NEAR_PX, y + STREET_NEAR_PX],
  ];
  let found = "";
  let best = Infinity;
  for (const feature of rendered(map, STREET_LINES, square)) {
    const { geometry } = feature;
    const lines = geometry.type === "LineString" ? [geometry.coordinates] : geometry.type === "MultiLineString" ? geometry.coordinates : [];
    for (const line of lines) {
      const distance = distanceToLineM(at, line as LonLat[]);
      if (nameOf(feature) && distance < best) [found, best] = [nameOf(feature), distance];
    }
  }
  return found;
}

/** The address that is nearest. A town has thousands, so the map's index answers which are in the square around. */
function nearestAddress(map: MapLibre, at: LonLat): NamedPoint | undefined {
  const { x, y } = map.project(at);
  const half = pixelsAtZoom0(ADDRESS_NEAR_M, at[1]) * 2 ** map.getZoom();
  const square: [[number, number], [number, number]] = [
    [x - half, y - half],
    [x + half, y + half],
  ];
  return nearestOf(rendered(map, [ADDRESSES], square), at, ADDRESS_NEAR_M);
}

function nearest(map: MapLibre, source: string, layers: string[], at: LonLat, withinM: number): NamedPoint | undefined {
  return nearestOf(layers.flatMap((sourceLayer) => map.querySourceFeatures(source, { sourceLayer })), at, withinM);
}

function nearestOf(features: Pick<GeoJSON.Feature, "geometry" | "properties">[], at: LonLat, withinM: number): NamedPoint | undefined {
  let found: NamedPoint | undefined;
  for (const { geometry, properties } of features) {
    const name = nameOf({ properties: properties ?? {} });
    if (geometry.type !== "Point" || !name) continue;
    const there = geometry.coordinates as LonLat;
    const distance = distanceM(there, at);
    if (distance <= withinM && distance < (found?.distanceM ?? Infinity)) {
      found = { name, distanceM: distance, bearingDeg: bearingDeg(there, at) };
    }
  }
  return found;
}

function rendered(map: MapLibre, layers: string[], where: Parameters<MapLibre["queryRenderedFeatures"]>[0]): MapGeoJSONFeature[] {
  const known = layers.filter((layer) => map.getLayer(layer));
  return known.length ? map.queryRenderedFeatures(where, { layers: known }) : [];
}

function nameOf(feature: { properties: Record<string, unknown> }): string {
  return String(feature.properties["name"] ?? "");
}
