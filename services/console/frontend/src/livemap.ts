// The map of the live page: targets of open incidents, the desk's own units, and rings and tracks of the chosen incident. Changes are
// drawn together, and only after the previous ones are drawn: with thousands of subjects, drawing takes longer than the interval between
// changes. The map moves only to the chosen incident, so an exercise or another incident never moves it.

import { GeoJSONSource, LngLatBounds } from "maplibre-gl";
import type { Map as MapLibre } from "maplibre-gl";
import { disc, distanceM, stretches } from "./geo";
import type { LonLat } from "./geo";
import { PLACE_IMAGE, liveLayers, placeImage } from "./livelayers";
import type { MapAddresses } from "./map";
import { SOURCE, openMap, pixelsAtZoom0, repaint } from "./map";
import { Pace } from "./pace";
import { onThemeChange } from "./palette";
import { AREAS, placeAt } from "./places";
import { Targets, incidentOf } from "./targets";
import type { Target } from "./targets";
import { warmUp } from "./warmup";
import type { TrackPoint, Words } from "./words";

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

const DRAW_INTERVAL_MS = 500;
/** Additional interval for each item on the map, in ms: 20,000 items are drawn every 2.5 s, and each reports every 15 s. */
const EXTRA_INTERVAL_MS = 0.1;
const TRACK_MS = 600_000;
/** Time for which the words for a position stay, in ms: more of the map may be loaded later. */
const NAMED_MS = 5_000;
/** Time after which a place that the map doesn't show yet, or not whole, is looked up the next time, in ms. */
const UNNAMED_MS = 1_000;
const MAX_NAMES = 500;
/** Time for which a movement to a newly chosen incident waits for its rings, in ms, as a second movement would cost as much. */
const RINGS_WAIT_MS = 500;
/** Largest radius of a ring that the view is fitted to, in m. */
const RING_SHOWN_M = 1_000;
/** Greatest zoom of a view that is fitted: to a ring, and to positions alone. */
const NEAREST_ZOOM = 17;
const FIT_ZOOM = 15;
/** Zoom of the finest tiles of what changes: nearer views are parts of them. Few tiles are few parts to draw; a place is exact to 0.25 m. */
const TILE_ZOOM = 14;
/** Where samples are drawn before the first incident: Seoul, where the base map has each of its layers. */
const SAMPLE_AT: LonLat = [126.98, 37.57];
const EMPTY: GeoJSON.FeatureCollection = { type: "FeatureCollection", features: [] };
type Feature = GeoJSON.Feature;

export class LiveMap {
  readonly targets = new Targets();
  readonly units = new Map<string, Unit>();
  /** Tracks of the chosen incident's targets, by target id. */
  tracks = new Map<string, TrackPoint[]>();
  /** Radii of the chosen incident's rings in m, ascending. */
  #rings: number[] = [];
  /** Whether the user moved the map since the incident was chosen: then nothing moves it but a choice. */
  #isUsersView = false;
  #map: MapLibre | undefined;
  #pace: Pace | undefined;
  /** Items to draw. */
  #moved = new Set<string>();
  /** Items that moved beyond the view: they are drawn when the view moves there, and looked at no sooner. */
  #beyond = new Set<string>();
  /** Positions of the items that the map has. */
  #shown = new Map<string, LonLat>();
  #incident = "";
  #fitDue = false;
  /** Time before which the map isn't fitted. */
  #fitFromMs = -Infinity;
  /** Targets that the map was fitted to. */
  #fitted = new Set<string>();
  #drawnAtMs = -Infinity;
  /** Rings and tracks that the map shows. */
  #chosenDrawn = "";
  /** Places in words, by position to 10 m; empty for one that the map doesn't show. */
  #names = new Map<string, { name: string; untilMs: number }>();

  constructor(
    container: HTMLElement,
    page: MapAddresses,
    private readonly words: Words,
    private readonly nameOf: (target: Target) => string,
  ) {
    void openMap(container, page, words.say("attribution")).then((opened) => this.#open(opened));
    setInterval(() => this.#draw(), DRAW_INTERVAL_MS);
  }

  /** Draws nothing before a painting of the page is done: list and card are more urgent. */
  waitFor(painting: Promise<void>): void {
    this.#pace?.waitFor(painting);
  }

  /** Notes that an item has moved, come or gone; it is drawn soon. */
  moved(id: string): void {
    this.#moved.add(id);
    if (!this.#incident || incidentOf(id) !== this.#incident) return;
    const target = this.targets.get(id);
    if (!target?.at || !target.fix) return;
    const track = this.tracks.get(id) ?? [];
    this.tracks.set(id, track);
    if ((track.at(-1)?.[0] ?? 0) < target.fix) track.push([target.fix, target.at[0], target.at[1]]);
    while ((track[0]?.[0] ?? Infinity) < target.fix - TRACK_MS) track.shift();
  }

  clear(): void {
    for (const id of [...this.targets.clear(), ...this.units.keys()]) this.#moved.add(id);
    this.units.clear();
  }

  /** Chooses an incident: the map is fitted to it, once its first position is known and its rings are, or don't come soon. */
  choose(incident: string): void {
    for (const target of this.targets.of(this.#incident)) this.#moved.add(target.id); // their marks shrink
    this.#incident = incident;
    this.tracks = new Map(this.targets.of(incident).map((target) => [target.id, []]));
    this.#rings = [];
    this.#isUsersView = false;
    this.#fitted.clear();
    this.#fitDue = true;
    this.#fitFromMs = performance.now() + RINGS_WAIT_MS;
    this.redraw();
  }

  /** Shows the rings of the chosen incident, and fits the map to the one that matters, unless the user moved the map. */
  showRings(radii: number[]): void {
    const rings = [...new Set(radii)].sort((a, b) => a - b);
    const isNew = rings.join() !== this.#rings.join();
    this.#rings = rings;
    this.#fitFromMs = -Infinity;
    if (isNew && !this.#isUsersView) this.#fitDue = true;
    this.redraw();
  }

  /** Whether the map shows rings of this radius, in m; also for 0, which is none. */
  hasRing(radius: number): boolean {
    return !radius || this.#rings.includes(radius);
  }

  /** Fits the map to the chosen incident. */
  fit(): void {
    this.#fitDue = true;
    this.#fitFromMs = -Infinity;
    this.redraw();
  }

  /** Draws the chosen incident once more, as its rings, tracks or names have changed. */
  redraw(): void {
    for (const target of this.targets.of(this.#incident)) this.#moved.add(target.id);
    this.#draw();
  }

  /** Name of the place at a position with its accuracy in m; the position itself where the map doesn't show the place. */
  place(at: LonLat, accuracyM: number): string {
    const key = at.map((degrees) => degrees.toFixed(4)).join(" ");
    const position = `${at[1].toFixed(4)}, ${at[0].toFixed(4)}`;
    const known = this.#names.get(key);
    if (known && performance.now() < known.untilMs) return known.name || position;
    const place = this.#map && placeAt(this.#map, SOURCE, at, accuracyM);
    const found = place ? this.words.place(place) : "";
    const name = found || known?.name || "";
    if (this.#names.size >= MAX_NAMES) this.#names.clear();
    this.#names.set(key, { name, untilMs: performance.now() + (place?.areas.length === AREAS.length ? NAMED_MS : UNNAMED_MS) });
    return name || position;
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
    const view = viewOf(map);
    for (const id of this.#moved) {
      const at = positionOf(this.units.get(id) ?? this.targets.get(id));
      const before = this.#shown.get(id);
      if (at && !isIn(view, at) && !(before && isIn(view, before))) this.#beyond.add(id);
      else if (at) {
        add.push(this.#feature(id, at));
        this.#shown.set(id, at);
      } else if (this.#shown.delete(id)) remove.push(id);
    }
    this.#moved.clear();
    if (add.length || remove.length) void source.updateData({ add: add as never, remove });
    this.#drawChosen(map);
  }

  /** Rings round the protected persons and places of the chosen incident, and its tracks: drawn where they have changed. */
  #drawChosen(map: MapLibre): void {
    const features: Feature[] = [];
    for (const target of this.targets.of(this.#incident)) {
      const track = this.tracks.get(target.id) ?? [];
      for (const way of stretches(track)) {
        if (way.length > 1) features.push(line("track", "", target.sort, way.map(([, lon, lat]) => [lon, lat])));
      }
      if (!isProtected(target) || !target.at) continue;
      const [lon, lat, accuracy] = target.at;
      for (const ring of this.#rings) {
        const radius = ring + (target.sort === "place" ? accuracy : 0);
        features.push(line("ring", `${ring} m`, target.sort, disc([lon, lat], radius)));
      }
    }
    const drawn = JSON.stringify(features);
    if (drawn === this.#chosenDrawn) return;
    this.#chosenDrawn = drawn;
    void map.getSource<GeoJSONSource>("chosen")?.setData({ type: "FeatureCollection", features });
  }

  #fit(map: MapLibre): void {
    const located = this.targets.of(this.#incident).filter((target) => target.at);
    // Of a new incident, the places are known before the first position of the wearer.
    const isNew = !this.#isUsersView && located.some((target) => !this.#fitted.has(target.id));
    if (!(this.#fitDue || isNew) || !located.length || performance.now() < this.#fitFromMs) return;
    this.#fitDue = false;
    this.#fitted = new Set(located.map((target) => target.id));
    const bounds = new LngLatBounds();
    const ring = this.#ringToShow(located);
    for (const target of located) {
      const [lon, lat, accuracy] = target.at as [number, number, number];
      for (const corner of disc([lon, lat], Math.max(accuracy, isProtected(target) ? ring : 0))) bounds.extend(corner);
    }
    for (const unit of this.units.values()) if (unit.incident === this.#incident && unit.going) bounds.extend(unit.at);
    map.fitBounds(bounds, { padding: 60, maxZoom: ring ? NEAREST_ZOOM : FIT_ZOOM, animate: false });
    map.getContainer().dataset["fitted"] = this.#incident;
    map.getContainer().dataset["rings"] = this.#rings.join(" ");
  }

  /** Radius of the smallest ring in which the wearer is, in m: it shows how near he is. 0 for none up to RING_SHOWN_M. */
  #ringToShow(located: Target[]): number {
    const wearer = located.find((target) => target.sort === "wearer")?.at;
    const others = located.filter(isProtected);
    if (!wearer || !others.length) return 0;
    const from = ({ sort, at }: Target): number =>
      at ? distanceM([wearer[0], wearer[1]], [at[0], at[1]]) - (sort === "place" ? at[2] : 0) : Infinity;
    const away = Math.min(...others.map(from));
    return this.#rings.find((radius) => radius >= away && radius <= RING_SHOWN_M) ?? 0;
  }

  #feature(id: string, at: LonLat): Feature {
    const unit = this.units.get(id);
    if (unit) return point(id, at, { sort: "unit", unknown: unit.unknown, r0: 0, name: `${unit.name}\n${this.#stateText(unit)}`, grave: unit.going });
    const target = this.targets.get(id) as Target;
    const own = this.nameOf(target);
    const name = target.unknown ? `${own}\n${this.words.say("unknown_position")}` : own;
    const r0 = pixelsAtZoom0(target.at?.[2] ?? 0, at[1]);
    return point(id, at, { sort: target.sort, unknown: target.unknown, r0, name, grave: incidentOf(id) === this.#incident });
  }

  #stateText(unit: Unit): string {
    return unit.unknown ? `${this.words.say(unit.state)}, ${this.words.say("unknown_position")}` : this.words.say(unit.state);
  }

  async #open(opened: MapLibre): Promise<void> {
    opened.addSource("subjects", { type: "geojson", promoteId: "id", data: EMPTY, maxzoom: TILE_ZOOM });
    opened.addSource("chosen", { type: "geojson", data: EMPTY, maxzoom: TILE_ZOOM });
    opened.addImage(PLACE_IMAGE, placeImage(), { sdf: true });
    for (const layer of liveLayers()) opened.addLayer(layer);
    onThemeChange(() => repaint(opened, liveLayers()));
    const sample = { unknown: false, r0: pixelsAtZoom0(100, SAMPLE_AT[1]), name: "0 가", grave: true };
    await warmUp(opened, SAMPLE_AT, {
      subjects: ["wearer", "place"].map((sort) => point(sort, SAMPLE_AT, { sort, ...sample })),
      chosen: ["ring", "track"].map((kind) => line(kind, "100 m", "place", disc(SAMPLE_AT, 100))),
    });
    this.#map = opened;
    this.#pace = new Pace(opened);
    opened.getContainer().dataset["ready"] = "yes";
    opened.on("movestart", ({ originalEvent }) => (this.#isUsersView ||= Boolean(originalEvent)));
    opened.on("moveend", () => this.#viewMoved(opened));
    this.#draw();
  }

  /** Notes that the view has moved: what has moved beyond the earlier view may be in this one, and is drawn without an interval. */
  #viewMoved(map: MapLibre): void {
    for (const id of this.#beyond) this.#moved.add(id);
    this.#beyond.clear();
    this.#drawnAtMs = -Infinity;
    // For tests and support, as `ready`, `fitted` and `rings`: what the map shows can't be read off its canvas.
    map.getContainer().dataset["centre"] = map.getCenter().toArray().join(" ");
  }
}

/** Whether a target is a protected person or place, round which the order has rings. */
function isProtected(target: Target): boolean {
  return target.sort === "protected" || target.sort === "place";
}

function positionOf(item: { at: readonly number[] | null } | undefined): LonLat | undefined {
  return item?.at ? [item.at[0] as number, item.at[1] as number] : undefined;
}

/** West, south, east and north edge, in degrees. */
type View = [number, number, number, number];

/** What the map shows, and a tenth of it on each side. */
function viewOf(map: MapLibre): View {
  const { lng: west, lat: south } = map.getBounds().getSouthWest();
  const { lng: east, lat: north } = map.getBounds().getNorthEast();
  const [width, height] = [(east - west) / 10, (north - south) / 10];
  return [west - width, south - height, east + width, north + height];
}

function isIn([west, south, east, north]: View, [lon, lat]: LonLat): boolean {
  return lon >= west && lon <= east && lat >= south && lat <= north;
}

function point(id: string, at: LonLat, properties: Record<string, unknown>): Feature {
  return { type: "Feature", geometry: { type: "Point", coordinates: at }, properties: { id, ...properties } };
}

function line(kind: string, name: string, sort: string, coordinates: LonLat[]): Feature {
  return { type: "Feature", geometry: { type: "LineString", coordinates }, properties: { kind, name, sort } };
}
