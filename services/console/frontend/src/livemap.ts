// The map of the live page: targets of open incidents, the desk's own units, and rings and tracks of the chosen incident. Changes are
// drawn together, and only after the previous ones are drawn: with thousands of subjects, drawing takes longer than the interval between
// changes. The map moves only when an incident is chosen, so an exercise or another incident never moves it.

import { GeoJSONSource, LngLatBounds } from "maplibre-gl";
import type { LayerSpecification, Map as MapLibre } from "maplibre-gl";
import { disc, distanceM } from "./geo";
import type { LonLat } from "./geo";
import type { MapAddresses } from "./map";
import { METRES, SOURCE, openMap, pixelsAtZoom0, repaint } from "./map";
import { onThemeChange, palette } from "./palette";
import { placeAt } from "./places";
import type { TrackPoint, Words } from "./words";

export interface Target {
  id: string;
  sort: "wearer" | "place" | "protected";
  unknown: boolean;
  /** Time of the fix in ms; null for a place. */
  fix: number | null;
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
const TRACK_MS = 600_000;
/** Time for which the words for a position stay: more of the map may be loaded later. */
const NAMED_MS = 5_000;
const MAX_NAMES = 500;
/** Largest radius of a ring that the view is fitted to, in m. */
const RING_SHOWN_M = 1_000;
/** Greatest zoom of a view that is fitted: to a ring, and to positions alone. */
const NEAREST_ZOOM = 17;
const FIT_ZOOM = 15;
type Feature = GeoJSON.Feature;

export class LiveMap {
  readonly targets = new Map<string, Target>();
  readonly units = new Map<string, Unit>();
  /** Tracks of the chosen incident's targets, by target id. */
  tracks = new Map<string, TrackPoint[]>();
  /** Radii of the chosen incident's rings in m, ascending. */
  #rings: number[] = [];
  /** Whether the user moved the map since the incident was chosen: then nothing moves it but a choice. */
  #isUsersView = false;
  #map: MapLibre | undefined;
  #moved = new Set<string>();
  #incident = "";
  #fitDue = false;
  #drawnAtMs = -Infinity;
  /** Places in words, by position to 10 m. */
  #names = new Map<string, { name: string; atMs: number }>();

  constructor(
    container: HTMLElement,
    page: MapAddresses,
    private readonly words: Words,
    private readonly nameOf: (target: Target) => string,
  ) {
    void openMap(container, page, words.say("attribution")).then((opened) => this.#open(opened));
    setInterval(() => this.#draw(), DRAW_INTERVAL_MS);
    onThemeChange(() => this.#map && repaint(this.#map, layers()));
  }

  /** Notes that an item has moved, come or gone; it is drawn soon. */
  moved(id: string): void {
    this.#moved.add(id);
    const target = this.targets.get(id);
    if (!target?.at || !target.fix || !this.#incident || !id.startsWith(`${this.#incident}/`)) return;
    const track = this.tracks.get(id) ?? [];
    this.tracks.set(id, track);
    if ((track.at(-1)?.[0] ?? 0) < target.fix) track.push([target.fix, target.at[0], target.at[1]]);
    while ((track[0]?.[0] ?? Infinity) < target.fix - TRACK_MS) track.shift();
  }

  clear(): void {
    for (const all of [this.targets, this.units]) {
      for (const id of all.keys()) this.#moved.add(id);
      all.clear();
    }
  }

  /** Chooses an incident: the map is fitted to it, now or when its first position is known. */
  choose(incident: string): void {
    for (const target of this.of(this.#incident)) this.#moved.add(target.id); // their marks shrink
    this.#incident = incident;
    this.tracks = new Map(this.of(incident).map((target) => [target.id, []]));
    this.#rings = [];
    this.#isUsersView = false;
    this.fit();
  }

  /** Shows the rings of the chosen incident, and fits the map to the one that matters, unless the user moved the map. */
  showRings(radii: number[]): void {
    const rings = [...new Set(radii)].sort((a, b) => a - b);
    const isNew = rings.join() !== this.#rings.join();
    this.#rings = rings;
    if (isNew && !this.#isUsersView) this.#fitDue = true;
    this.redraw();
  }

  /** Fits the map to the chosen incident. */
  fit(): void {
    this.#fitDue = true;
    this.redraw();
  }

  /** Draws the chosen incident once more, as its rings, tracks or names have changed. */
  redraw(): void {
    for (const target of this.of(this.#incident)) this.#moved.add(target.id);
    if (this.#map) this.#draw();
  }

  /** Targets of an incident. */
  of(incident: string): Target[] {
    return incident ? [...this.targets.values()].filter((target) => target.id.startsWith(`${incident}/`)) : [];
  }

  /** Name of the place at a position; the position itself where the map doesn't show the place. */
  place(at: LonLat): string {
    const key = at.map((degrees) => degrees.toFixed(4)).join(" ");
    const known = this.#names.get(key);
    if (known && performance.now() < known.atMs + NAMED_MS) return known.name;
    const name = this.#map ? this.words.place(placeAt(this.#map, SOURCE, at)) : "";
    if (name) {
      if (this.#names.size >= MAX_NAMES) this.#names.clear();
      this.#names.set(key, { name, atMs: performance.now() });
    }
    return name || known?.name || `${at[1].toFixed(4)}, ${at[0].toFixed(4)}`;
  }

  #draw(): void {
    const map = this.#map;
    const source = map?.getSource<GeoJSONSource>("subjects");
    if (!map || !source || document.hidden || !map.isSourceLoaded("subjects")) return;
    this.#fit(map);
    if (!this.#moved.size || performance.now() < this.#drawnAtMs + EXTRA_INTERVAL_MS * (this.targets.size + this.units.size)) return;
    this.#drawnAtMs = performance.now();
    const add: Feature[] = [];
    const remove: string[] = [];
    for (const id of this.#moved) {
      const made = this.#feature(id);
      if (made) add.push(made);
      else remove.push(id);
    }
    this.#moved.clear();
    source.updateData({ add: add as never, remove });
    map.getSource<GeoJSONSource>("chosen")?.setData({ type: "FeatureCollection", features: this.#chosen() });
  }

  #fit(map: MapLibre): void {
    const located = this.of(this.#incident).filter((target) => target.at);
    if (!this.#fitDue || !located.length) return;
    this.#fitDue = false;
    const bounds = new LngLatBounds();
    const ring = this.#ringToShow(located);
    for (const target of located) {
      const [lon, lat, accuracy] = target.at as [number, number, number];
      for (const corner of disc([lon, lat], Math.max(accuracy, target.sort === "wearer" ? 0 : ring))) bounds.extend(corner);
    }
    for (const unit of this.units.values()) if (unit.incident === this.#incident && unit.going) bounds.extend(unit.at);
    map.fitBounds(bounds, { padding: 60, maxZoom: ring ? NEAREST_ZOOM : FIT_ZOOM, animate: false });
    map.getContainer().dataset["fitted"] = this.#incident;
    map.getContainer().dataset["rings"] = this.#rings.join(" ");
  }

  /** Radius of the smallest ring in which the wearer is, in m: it shows how near he is. 0 for none up to RING_SHOWN_M. */
  #ringToShow(located: Target[]): number {
    const wearer = located.find((target) => target.sort === "wearer")?.at;
    const others = located.filter((target) => target.sort !== "wearer");
    if (!wearer || !others.length) return 0;
    const from = ({ sort, at }: Target): number =>
      at ? distanceM([wearer[0], wearer[1]], [at[0], at[1]]) - (sort === "place" ? at[2] : 0) : Infinity;
    const away = Math.min(...others.map(from));
    return this.#rings.find((radius) => radius >= away && radius <= RING_SHOWN_M) ?? 0;
  }

  #feature(id: string): Feature | undefined {
    const unit = this.units.get(id);
    if (unit) return point(id, unit.at, { sort: "unit", unknown: unit.unknown, r0: 0, name: `${unit.name}\n${this.#stateText(unit)}`, grave: unit.going });
    const target = this.targets.get(id);
    if (!target?.at) return undefined;
    const [lon, lat, accuracy] = target.at;
    const grave = id.startsWith(`${this.#incident}/`);
    const own = this.nameOf(target);
    const name = target.unknown ? `${own}\n${this.words.say("unknown_position")}` : own;
    return point(id, [lon, lat], { sort: target.sort, unknown: target.unknown, r0: pixelsAtZoom0(accuracy, lat), name, grave });
  }

  /** Rings round the protected persons and places of the chosen incident, and its tracks. */
  #chosen(): Feature[] {
    const found: Feature[] = [];
    for (const target of this.of(this.#incident)) {
      const track = this.tracks.get(target.id) ?? [];
      if (track.length > 1) found.push(line("track", "", target.sort, track.map(([, lon, lat]) => [lon, lat])));
      if (target.sort === "wearer" || !target.at) continue;
      const [lon, lat, accuracy] = target.at;
      for (const ring of this.#rings) {
        const radius = ring + (target.sort === "place" ? accuracy : 0);
        found.push(line("ring", `${ring} m`, target.sort, disc([lon, lat], radius)));
      }
    }
    return found;
  }

  #stateText(unit: Unit): string {
    return unit.unknown ? `${this.words.say(unit.state)}, ${this.words.say("unknown_position")}` : this.words.say(unit.state);
  }

  #open(opened: MapLibre): void {
    const empty = { type: "FeatureCollection", features: [] } as never;
    opened.addSource("subjects", { type: "geojson", promoteId: "id", data: empty });
    opened.addSource("chosen", { type: "geojson", data: empty });
    for (const layer of layers()) opened.addLayer(layer);
    this.#map = opened;
    opened.on("movestart", ({ originalEvent }) => (this.#isUsersView ||= Boolean(originalEvent)));
    // For tests and support: what the map shows can't be read off its canvas.
    opened.on("moveend", () => (opened.getContainer().dataset["centre"] = opened.getCenter().toArray().join(" ")));
    this.#draw();
  }
}

function point(id: string, at: LonLat, properties: Record<string, unknown>): Feature {
  return { type: "Feature", geometry: { type: "Point", coordinates: at }, properties: { id, ...properties } };
}

function line(kind: string, name: string, sort: string, coordinates: LonLat[]): Feature {
  return { type: "Feature", geometry: { type: "LineString", coordinates }, properties: { kind, name, sort } };
}

function layers(): LayerSpecification[] {
  const colors = palette();
  const color = ["match", ["get", "sort"], "wearer", colors.wearer, "unit", colors.unit, colors.protected] as never;
  const isUnit = ["==", ["get", "sort"], "unit"];
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
      id: "marks",
      type: "circle",
      source: "subjects",
      minzoom: NEAR,
      layout: { "circle-sort-key": ["match", ["get", "sort"], "wearer", 1, "unit", 2, 0] as never },
      paint: {
        "circle-radius": ["case", ["get", "grave"], 8, 5] as never,
        "circle-color": ["case", ["get", "unknown"], colors.paper, color] as never,
        "circle-stroke-color": ["case", ["all", isUnit, ["!", ["get", "unknown"]]], colors.paper, color] as never,
        "circle-stroke-width": 3,
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
        "text-radial-offset": 1.1,
      },
      paint: { "text-color": colors.ink, "text-halo-color": colors.paper, "text-halo-width": 2 },
    },
  ];
}
