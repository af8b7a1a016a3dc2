// The map of the live page: targets of open incidents, and the desk's own units. Changes are drawn together, and only after the previous
// ones are drawn: with thousands of subjects, drawing takes longer than the interval between changes.

import { GeoJSONSource, LngLatBounds } from "maplibre-gl";
import type { Map as MapLibre } from "maplibre-gl";
import { METRES, openMap, pixelsAtZoom0 } from "./map";

export interface Target {
  id: string;
  sort: "wearer" | "place" | "protected";
  unknown: boolean;
  /** Longitude, latitude, accuracy in metres. */
  at: [number, number, number] | null;
}

export interface Unit {
  id: string;
  name: string;
  class: string;
  /** State of its assignment, or its own status. */
  state: string;
  /** Whether it is assigned to an incident. */
  going: boolean;
  unknown: boolean;
  /** Longitude, latitude. */
  at: [number, number];
  incident: string;
}

/** Zoom from which names and accuracy circles are shown. */
const NEAR = 10;
const DRAW_INTERVAL_MS = 500;
/** Additional interval for each item on the map, in ms: 20,000 items are drawn every 2.5 s, and each reports every 15 s. */
const EXTRA_INTERVAL_MS = 0.1;
type Feature = GeoJSON.Feature<GeoJSON.Point>;
type LonLatPair = [number, number];

export class LiveMap {
  readonly targets = new Map<string, Target>();
  readonly units = new Map<string, Unit>();
  #map: MapLibre | undefined;
  #moved = new Set<string>();
  #touched = false;
  #fitted = 0;
  #drawnAtMs = -Infinity;

  constructor(
    container: HTMLElement,
    tiles: string,
    private readonly text: (key: string) => string,
  ) {
    void openMap(container, tiles, text("attribution")).then((opened) => this.#open(opened));
    setInterval(() => this.#draw(), DRAW_INTERVAL_MS);
  }

  /** Notes that an item has moved, come or gone; it is drawn soon. */
  moved(id: string): void {
    this.#moved.add(id);
  }

  clear(): void {
    for (const all of [this.targets, this.units]) {
      for (const id of all.keys()) this.#moved.add(id);
      all.clear();
    }
  }

  #draw(): void {
    const source = this.#map?.getSource<GeoJSONSource>("subjects");
    if (!this.#map || !source || !this.#moved.size || document.hidden || !this.#map.isSourceLoaded("subjects")) return;
    if (performance.now() < this.#drawnAtMs + EXTRA_INTERVAL_MS * (this.targets.size + this.units.size)) return;
    this.#drawnAtMs = performance.now();
    const add: Feature[] = [];
    const remove: string[] = [];
    for (const id of this.#moved) {
      const made = this.#feature(id);
      if (made) add.push(made);
      else remove.push(id);
    }
    this.#moved.clear();
    source.updateData({ add, remove });
    this.#fit();
  }

  #fit(): void {
    const map = this.#map;
    if (map && !this.#touched && this.targets.size > this.#fitted) {
      const bounds = new LngLatBounds();
      for (const target of this.targets.values()) if (target.at) bounds.extend([target.at[0], target.at[1]]);
      for (const unit of this.units.values()) if (unit.going) bounds.extend(unit.at);
      if (!bounds.isEmpty()) map.fitBounds(bounds, { padding: 70, maxZoom: 13, animate: false });
    }
    this.#fitted = this.targets.size;
  }

  #feature(id: string): Feature | undefined {
    const unit = this.units.get(id);
    if (unit) return this.#point(id, unit.at, "unit", unit.unknown, 0, `${unit.name}\n${this.#stateText(unit)}`, unit.going);
    const target = this.targets.get(id);
    if (!target?.at) return undefined;
    const [lon, lat, accuracy] = target.at;
    const name = target.unknown ? `${this.text(target.sort)}\n${this.text("unknown_position")}` : this.text(target.sort);
    return this.#point(id, [lon, lat], target.sort, target.unknown, pixelsAtZoom0(accuracy, lat), name, true);
  }

  #stateText(unit: Unit): string {
    return unit.unknown ? `${this.text(unit.state)}, ${this.text("unknown_position")}` : this.text(unit.state);
  }

  #point(id: string, at: LonLatPair, sort: string, unknown: boolean, r0: number, name: string, grave: boolean): Feature {
    return { type: "Feature", geometry: { type: "Point", coordinates: at }, properties: { id, sort, unknown, r0, name, grave } };
  }

  #open(opened: MapLibre): void {
    opened.addSource("subjects", { type: "geojson", promoteId: "id", data: { type: "FeatureCollection", features: [] } });
    const color = ["match", ["get", "sort"], "wearer", "#c0392b", "unit", "#0b4f9e", "#0b6e4f"] as never;
    opened.addLayer({
      id: "accuracy",
      type: "circle",
      source: "subjects",
      minzoom: NEAR,
      filter: [">", ["get", "r0"], 0],
      paint: { "circle-radius": METRES, "circle-color": color, "circle-opacity": 0.15 },
    });
    // At low zoom, marks are small and have no edge: there may be thousands.
    opened.addLayer({
      id: "marks-far",
      type: "circle",
      source: "subjects",
      maxzoom: NEAR,
      paint: { "circle-radius": 4, "circle-color": ["case", ["get", "unknown"], "#8793a0", color] as never },
    });
    opened.addLayer({
      id: "marks",
      type: "circle",
      source: "subjects",
      minzoom: NEAR,
      layout: { "circle-sort-key": ["match", ["get", "sort"], "wearer", 1, "unit", 2, 0] as never },
      paint: {
        "circle-radius": ["case", ["get", "grave"], 7, 5] as never,
        "circle-color": ["case", ["get", "unknown"], "#ffffff", color] as never,
        "circle-stroke-color": ["case", ["all", ["==", ["get", "sort"], "unit"], ["!", ["get", "unknown"]]], "#ffffff", color] as never,
        "circle-stroke-width": 3,
      },
    });
    opened.addLayer({
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
        "text-radial-offset": 1.1,
      },
      paint: { "text-color": "#1b2733", "text-halo-color": "#ffffff", "text-halo-width": 2 },
    });
    for (const event of ["dragstart", "wheel"] as const) opened.on(event, () => (this.#touched = true));
    this.#map = opened;
    this.#draw();
  }
}
