// The replay of one incident: all known positions at the moment that the slider shows.

import { GeoJSONSource, LngLatBounds } from "maplibre-gl";
import type { LayerSpecification, Map as MapLibre } from "maplibre-gl";
import { disc, distanceM, lastBefore, stretches } from "./geo";
import type { LonLat } from "./geo";
import { Words } from "./words"; // before the map, by which the bundler names the part that pages share
import { openMap, repaint } from "./map";
import { byId, make, readPage, timeOfDay } from "./page";
import type { Page } from "./page";
import { onThemeChange, palette } from "./palette";
import { span } from "./span";

/** Time in milliseconds, longitude, latitude, accuracy in metres, and where the position comes from. */
type Point = [number, number, number, number, string];

interface Track {
  device: string;
  subject: string;
  wearer: boolean;
  points: Point[];
}

interface Place {
  id: string;
  lon?: number;
  lat?: number;
  radius?: number;
  /** Corners of an area, the first not repeated. */
  line?: LonLat[];
  /** Corners of the parts that are cut out of it. */
  holes?: LonLat[][];
}

/** A unit of the own leg, with the positions that it reported: time in milliseconds, longitude, latitude. */
interface Unit {
  unit: string;
  points: [number, number, number][];
}

interface Replay {
  tracks: Track[];
  units: Unit[];
  places: Place[];
  rings: number[];
  alerts: { at: number; kind: string; phase: string; ring: number }[];
}

interface Step {
  leg: string;
  subject: string;
  /** Unit of the own leg that went or was asked last; empty where the desk itself was asked. */
  unit: string;
  /** States with the times from which they held. */
  states: [number, string][];
}

/** A step that came too late, or not at all. */
interface LateStep {
  /** Key of its text. */
  name: string;
  leg: string;
  subject: string;
  due: number;
  /** When it came; null where it didn't. */
  met: number | null;
}

interface ReplayPage extends Page {
  replay: Replay;
  steps: Step[];
  late: LateStep[];
}

/** A mark on the time line. */
interface Mark {
  at: number;
  sort: "alert" | "step" | "late";
  text: string;
}

const STEPS = 1_000;
/** Duration of a replay at the speed `fit`, in ms. */
const PLAYED_MS = 12_000;
/** Largest radius of a ring that the first view shows completely, in m. */
const RING_SHOWN_M = 3_000;

const page = readPage<ReplayPage>();
const { tracks, units, places, rings, alerts } = page.replay;
const words = new Words(page.texts);
const text = (key: string): string => words.say(key);
for (const track of [...tracks, ...units]) track.points.sort((a, b) => a[0] - b[0]);
alerts.sort((a, b) => a.at - b.at);
const moments = new Map(tracks.map((track) => [track, track.points.map((at) => at[0])]));

const [fromMs, untilMs] = span(
  [...moments.values()].flat(),
  // An account may be amended hours later, by reports that were buffered. The replay ends with the response all the same.
  alerts.filter((alert) => alert.kind !== "ACCOUNT_AMENDED").map((alert) => alert.at),
  page.steps.flatMap((step) => step.states.map(([since]) => since)),
);
const slider = byId<HTMLInputElement>("slider");
const speed = byId<HTMLSelectElement>("speed");
let map: MapLibre | undefined;
/** Time that is shown. The slider is coarser than a replay in real time needs. */
let shownMs = alerts.length ? Math.min(...alerts.map((alert) => alert.at)) : fromMs;

const marks: Mark[] = [
  ...alerts.map((alert): Mark => ({ at: alert.at, sort: "alert", text: alertText(alert) })),
  ...page.steps.flatMap((step) => step.states.map(([at, state]): Mark => ({ at, sort: "step", text: `${text(step.leg)} → ${step.subject}: ${text(state)}` }))),
  ...page.late.map((late): Mark => ({ at: late.due, sort: "late", text: lateText(late) })),
].sort((a, b) => a.at - b.at);

function alertText({ kind, phase, ring }: Replay["alerts"][number]): string {
  return `${words.alert(kind, phase)}${ring ? ` ${ring} m` : ""}`;
}

function lateText(late: LateStep): string {
  return `${text(late.leg)} → ${late.subject}: ${text(late.name)} ${text("was_due")}`;
}

/** Returns where a time is on the slider. */
function valueOf(at: number): number {
  return ((Math.min(at, untilMs) - fromMs) / (untilMs - fromMs)) * STEPS;
}

function show(at: number): void {
  shownMs = Math.max(fromMs, Math.min(untilMs, at));
  slider.value = String(valueOf(shownMs));
  draw();
}

function known(track: Track, at: number): Point | undefined {
  return track.points[lastBefore(moments.get(track) ?? [], at)];
}

function middle(place: Place): LonLat {
  if (place.line?.length) {
    const sum = place.line.reduce<LonLat>((a, b) => [a[0] + b[0], a[1] + b[1]], [0, 0]);
    return [sum[0] / place.line.length, sum[1] / place.line.length];
  }
  return [place.lon ?? 0, place.lat ?? 0];
}

type Feature = GeoJSON.Feature;

function feature(sort: string, name: string, geometry: GeoJSON.Geometry): Feature {
  return { type: "Feature", geometry, properties: { sort, name } };
}

function area(sort: string, name: string, ...lines: LonLat[][]): Feature {
  return feature(sort, name, { type: "Polygon", coordinates: lines });
}

/** The outline of a place, then its holes, each as a closed line. */
function boundaries(place: Place): LonLat[][] {
  if (!place.line) return [disc(middle(place), Math.max(place.radius ?? 0, 3))];
  return [place.line, ...(place.holes ?? [])].map((line) => [...line, line[0] as LonLat]);
}

/** Lines that join positions in the order of their times, without those that are too far apart in time. */
function wayFeatures(sort: string, points: readonly (readonly [number, number, number, ...unknown[]])[]): Feature[] {
  return stretches(points)
    .filter((stretch) => stretch.length > 1)
    .map((stretch) => feature(sort, "", { type: "LineString", coordinates: stretch.map((point) => [point[1], point[2]]) }));
}

function features(at: number): Feature[] {
  const found: Feature[] = [];
  for (const place of places) {
    found.push(area("place", text("place"), ...boundaries(place)));
    // Rings round a polygon are drawn from its centre, as an approximation; only the evaluator computes their shape.
    for (const ring of rings) found.push(area("ring", `${ring} m`, disc(middle(place), ring + (place.radius ?? 0))));
  }
  for (const track of tracks) {
    const sort = track.wearer ? "wearer" : "protected";
    const now = known(track, at);
    if (!now) continue;
    const way = track.points.slice(0, lastBefore(moments.get(track) ?? [], at) + 1).filter((point) => point[0] >= fromMs);
    found.push(...wayFeatures(`${sort}-way`, way));
    found.push(area(`${sort}-accuracy`, "", disc([now[1], now[2]], Math.max(now[3], 1))));
    found.push(feature(sort, text(track.wearer ? "wearer" : "protected"), { type: "Point", coordinates: [now[1], now[2]] }));
  }
  return found;
}

function unitFeatures(at: number): Feature[] {
  return units.flatMap((unit) => {
    const way = unit.points.filter((point) => point[0] <= at);
    const now = way.at(-1);
    if (!now) return [];
    return [...wayFeatures("unit-way", way), feature("unit", `${text("unit")} ${unit.unit}`, { type: "Point", coordinates: [now[1], now[2]] })];
  });
}

function unitLines(at: number): string[] {
  return units.flatMap((unit) => {
    const now = unit.points.filter((point) => point[0] <= at).at(-1);
    return now ? [`${text("unit")} ${unit.unit}: ${words.say("replay_unit_fix", { age: words.time(at - now[0]) })}`] : [];
  });
}

function draw(): void {
  const at = shownMs;
  byId("moment").textContent = timeOfDay(at);
  slider.setAttribute("aria-valuetext", timeOfDay(at));
  map?.getSource<GeoJSONSource>("replay")?.setData({ type: "FeatureCollection", features: [...features(at), ...unitFeatures(at)] });
  const lines: string[] = [];
  for (const track of tracks) {
    const now = known(track, at);
    if (!now) continue;
    const who = `${text(track.wearer ? "wearer" : "protected")} ${track.device}`;
    const source = now[4] === "UNSPECIFIED" ? "" : `, ${text(`source_${now[4]}`)}`;
    const age = words.say("replay_fix", { age: words.time(at - now[0]), m: now[3].toFixed(0) }) + source;
    const near = places.map((place) => Math.max(0, distanceM([now[1], now[2]], middle(place)) - (place.radius ?? 0)));
    lines.push(`${who}: ${age}${track.wearer && near.length ? `, ${Math.min(...near).toFixed(0)} m → ${text("place")}` : ""}`);
  }
  lines.push(...unitLines(at));
  for (const step of page.steps) {
    const state = step.states.filter(([since]) => since <= at).at(-1);
    const unit = step.unit ? ` (${text("unit")} ${step.unit})` : "";
    if (state) lines.push(`${text(step.leg)} → ${step.subject}${unit}: ${text(state[1])}`);
  }
  const overdue = page.late.filter((late) => late.due <= at && (late.met === null || late.met > at)).map(lateText);
  const last = alerts.filter((alert) => alert.at <= at).at(-1);
  if (last) lines.push(`${timeOfDay(last.at)} ${alertText(last)}`);
  byId("state-at").replaceChildren(...lines.map((line) => make("li", {}, line)), ...overdue.map((line) => make("li", { class: "bad" }, line)));
  const past = lastBefore(marks.map((mark) => mark.at), at);
  for (const [n, item] of [...byId("events").children].entries()) item.toggleAttribute("aria-current", n === past);
  byId("now").setAttribute("x1", String(valueOf(at)));
  byId("now").setAttribute("x2", String(valueOf(at)));
}

slider.addEventListener("input", () => {
  shownMs = fromMs + ((untilMs - fromMs) * Number(slider.value)) / STEPS;
  draw();
});

function drawMarks(): void {
  const svg = byId("marks");
  const line = (attributes: Record<string, string>): SVGElement => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    svg.append(made);
    return made;
  };
  for (const mark of marks) {
    const x = String(valueOf(mark.at));
    const made = line({ class: `mark mark-${mark.sort}`, x1: x, x2: x, y1: "2", y2: "20" });
    made.addEventListener("click", () => show(mark.at));
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = `${timeOfDay(mark.at)} ${mark.text}`;
    made.append(title);
  }
  line({ id: "now", class: "mark-now", x1: "0", x2: "0", y1: "0", y2: "22" });
  byId("events").replaceChildren(
    ...marks.map((mark) => {
      const button = make("button", { type: "button", class: `plain event-${mark.sort}` }, `${timeOfDay(mark.at)} ${mark.text}`);
      button.addEventListener("click", () => show(mark.at));
      return make("li", {}, button);
    }),
  );
}

byId("event-before").addEventListener("click", () => show(marks.findLast((mark) => mark.at < shownMs)?.at ?? fromMs));
byId("event-after").addEventListener("click", () => show(marks.find((mark) => mark.at > shownMs)?.at ?? untilMs));

let playing: number | undefined;
const play = byId<HTMLButtonElement>("play");

function stop(): void {
  if (playing !== undefined) cancelAnimationFrame(playing);
  playing = undefined;
  play.textContent = text("play");
}

play.addEventListener("click", () => {
  if (playing !== undefined) return stop();
  if (shownMs >= untilMs) show(fromMs);
  let beforeMs = performance.now();
  play.textContent = text("pause");
  const step = (now: number): void => {
    const factor = speed.value === "fit" ? (untilMs - fromMs) / PLAYED_MS : Number(speed.value);
    show(shownMs + (now - beforeMs) * factor);
    beforeMs = now;
    if (shownMs >= untilMs) stop();
    else playing = requestAnimationFrame(step);
  };
  playing = requestAnimationFrame(step);
});

function replayLayers(): LayerSpecification[] {
  const colors = palette();
  const color = ["match", ["get", "sort"], ["wearer", "wearer-way", "wearer-accuracy"], colors.wearer, "ring", colors.ring, ["unit", "unit-way"], colors.unit, colors.protected] as never;
  const only = (...sorts: string[]) => ["in", ["get", "sort"], ["literal", sorts]] as never;
  const areas = only("place", "wearer-accuracy", "protected-accuracy");
  return [
    { id: "areas", type: "fill", source: "replay", filter: areas, paint: { "fill-color": color, "fill-opacity": 0.2 } },
    { id: "rings", type: "line", source: "replay", filter: only("ring"), paint: { "line-color": color, "line-width": 1.5, "line-dasharray": [4, 3] } },
    { id: "edges", type: "line", source: "replay", filter: areas, paint: { "line-color": color, "line-width": 1 } },
    { id: "ways", type: "line", source: "replay", filter: only("wearer-way", "protected-way", "unit-way"), paint: { "line-color": color, "line-width": 3 } },
    {
      id: "dots",
      type: "circle",
      source: "replay",
      filter: only("wearer", "protected", "unit"),
      paint: { "circle-color": color, "circle-radius": 7, "circle-stroke-color": colors.paper, "circle-stroke-width": 2 },
    },
    {
      id: "names",
      type: "symbol",
      source: "replay",
      filter: only("wearer", "protected", "unit"),
      layout: { "text-field": ["get", "name"], "text-font": ["sans-serif"], "text-size": 13, "text-variable-anchor": ["top", "bottom", "right", "left"], "text-radial-offset": 0.9 },
      paint: { "text-color": colors.ink, "text-halo-color": colors.paper, "text-halo-width": 2 },
    },
    {
      id: "ring-names",
      type: "symbol",
      source: "replay",
      filter: only("ring"),
      layout: { "symbol-placement": "line", "text-field": ["get", "name"], "text-font": ["sans-serif"], "text-size": 12 },
      paint: { "text-color": colors.ring, "text-halo-color": colors.paper, "text-halo-width": 2 },
    },
  ];
}

void openMap(byId("map"), page, text("attribution")).then((opened) => {
  opened.addSource("replay", { type: "geojson", data: { type: "FeatureCollection", features: [] } });
  for (const layer of replayLayers()) opened.addLayer(layer);
  onThemeChange(() => repaint(opened, replayLayers()));
  const bounds = new LngLatBounds();
  for (const track of tracks) {
    const before = known(track, fromMs);
    const seen = track.points.filter((at) => at[0] >= fromMs && at[0] <= untilMs);
    for (const at of before ? [before, ...seen] : seen) bounds.extend([at[1], at[2]]);
  }
  for (const unit of units) for (const at of unit.points) bounds.extend([at[1], at[2]]);
  const shown = Math.max(0, ...rings.filter((ring) => ring <= RING_SHOWN_M));
  for (const place of places) for (const at of disc(middle(place), shown)) bounds.extend(at);
  if (!bounds.isEmpty()) opened.fitBounds(bounds, { padding: 60, maxZoom: 15, animate: false });
  map = opened;
  draw();
});
drawMarks();
show(shownMs);
