// Streets from the operator's own tiles: a PMTiles file, or a template of vector or raster tiles. Two schemas are drawn: the one of
// tools/build_streets.py (`street` with `name` and `class`, `landmark` and `address` with `name`) and OpenMapTiles (`transportation`,
// `transportation_name`, `poi`).

import type { LayerSpecification, SourceSpecification } from "maplibre-gl";
import { PMTiles } from "pmtiles";
import type { Palette } from "./palette";

export const STREETS = "streets";
const MAIN = ["motorway", "trunk", "primary", "secondary"];
const RASTER = /\.(png|jpe?g|webp)(\?.*)?$/;

export interface Streets {
  source: SourceSpecification;
  layers: (colors: Palette) => LayerSpecification[];
}

/** Returns the source and the layers of a street map; undefined where its file can't be read. `credit` names whom its licence wants. */
export async function openStreets(address: string, credit = ""): Promise<Streets | undefined> {
  const said = credit ? { attribution: credit } : {};
  const url = new URL(address.split("?")[0] as string, location.href).href;
  if (!url.endsWith(".pmtiles")) {
    if (RASTER.test(address)) return { source: { type: "raster", tiles: [address], tileSize: 256, ...said }, layers: () => [raster()] };
    return { source: { type: "vector", tiles: [address], maxzoom: 14, ...said }, layers: (colors) => vector(colors, undefined) };
  }
  const file = new PMTiles(address);
  try {
    const header = await file.getHeader();
    // Type 1 is vector tiles; all others are pictures.
    if (header.tileType !== 1) {
      return { source: { type: "raster", url: `pmtiles://${address}`, tileSize: 256, ...said }, layers: () => [raster()] };
    }
    const about = (await file.getMetadata()) as { vector_layers?: { id: string }[] };
    const known = about.vector_layers ? new Set(about.vector_layers.map((layer) => layer.id)) : undefined;
    return { source: { type: "vector", url: `pmtiles://${address}`, ...said }, layers: (colors) => vector(colors, known) };
  } catch (error) {
    console.warn("the street map can't be read", address, error);
    return undefined;
  }
}

function raster(): LayerSpecification {
  return { id: STREETS, type: "raster", source: STREETS };
}

function vector(colors: Palette, known: Set<string> | undefined): LayerSpecification[] {
  const layers: (LayerSpecification & { "source-layer": string })[] = [];
  const isMain = ["in", ["get", "class"], ["literal", MAIN]];
  layers.push(
    { id: "s-water", type: "fill", source: STREETS, "source-layer": "water", paint: { "fill-color": colors.water } },
    { id: "s-building", type: "fill", source: STREETS, "source-layer": "building", minzoom: 14, paint: { "fill-color": colors.building } },
  );
  for (const layer of ["street", "transportation"]) {
    layers.push({
      id: `s-${layer}`,
      type: "line",
      source: STREETS,
      "source-layer": layer,
      layout: { "line-cap": "round", "line-join": "round" },
      paint: {
        "line-color": ["case", isMain, colors.mainStreet, colors.street] as never,
        "line-width": ["interpolate", ["exponential", 1.6], ["zoom"], 10, ["case", isMain, 1, 0.4], 17, ["case", isMain, 12, 6]] as never,
      },
    });
  }
  for (const layer of ["street", "transportation_name"]) {
    layers.push({
      id: `s-${layer}-label`,
      type: "symbol",
      source: STREETS,
      "source-layer": layer,
      minzoom: 13,
      filter: ["has", "name"],
      layout: { "symbol-placement": "line", "text-field": ["get", "name"], "text-font": ["sans-serif"], "text-size": 12 },
      paint: { "text-color": colors.label, "text-halo-color": colors.halo, "text-halo-width": 1.5 },
    });
  }
  for (const layer of ["landmark", "poi"]) {
    layers.push({
      id: `s-${layer}`,
      type: "symbol",
      source: STREETS,
      "source-layer": layer,
      minzoom: 14,
      filter: ["has", "name"],
      layout: { "text-field": ["get", "name"], "text-font": ["sans-serif"], "text-size": 11 },
      paint: { "text-color": colors.label, "text-halo-color": colors.halo, "text-halo-width": 1.5 },
    });
  }
  layers.push({ id: ADDRESSES, type: "circle", source: STREETS, "source-layer": "address", minzoom: 14, paint: { "circle-radius": 1, "circle-opacity": 0 } });
  return known ? layers.filter((layer) => known.has(layer["source-layer"])) : layers;
}

/** Layer without colour that answers which addresses are near. */
export const ADDRESSES = "s-address";
/** Layers that name the street at a point. */
export const STREET_LINES = ["s-street", "s-transportation_name-label", "s-street-label"];
