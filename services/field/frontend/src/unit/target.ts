// The live target of an accepted assignment: distance, direction and age from the unit's own position. A position older than three
// minutes is unknown, and never shown as a point.

import { proof } from "../kept";
import { made, span, t } from "./texts";

export interface Target {
  subject: string;
  is_wearer: boolean;
  unknown: boolean;
  interrupted: boolean;
  lat?: number;
  lon?: number;
  accuracy?: number;
  age_s?: number | null;
  at_ms: number;
}

const RETRY_MS = 3_000;
const OLD_MS = 180_000;
const EARTH_M = 6_371_000;
const POINTS = ["n", "ne", "e", "se", "s", "sw", "w", "nw"];
const SVG = "http://www.w3.org/2000/svg";

export class Targets {
  readonly found = new Map<string, Target>();
  private incident = "";
  private stop: AbortController | undefined;

  constructor(private readonly changed: () => void) {}

  follow(incident: string): void {
    if (incident === this.incident) return;
    this.stop?.abort();
    this.incident = incident;
    this.found.clear();
    if (!incident) return;
    this.stop = new AbortController();
    void this.run(incident, this.stop.signal);
  }

  private async run(incident: string, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        await this.read(incident, signal);
      } catch {
        for (const target of this.found.values()) target.interrupted = true;
      }
      if (signal.aborted) return;
      this.changed();
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  private async read(incident: string, signal: AbortSignal): Promise<void> {
    const path = `/api/unit/targets?incident=${encodeURIComponent(incident)}`;
    const headers = { "X-Proof": await proof("GET", path) };
    const answer = await fetch(path, { headers, cache: "no-store", redirect: "error", signal });
    if (!answer.ok || !answer.body) return;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) if (line) this.put(JSON.parse(line));
      this.changed();
    }
  }

  private put(event: Target & { followed: boolean }): void {
    if (!event.followed) this.found.clear();
    else this.found.set(event.subject, { ...event, at_ms: Date.now() - 1_000 * (event.age_s ?? 0) });
  }
}

export function panel(target: Target, own: { lat: number; lon: number } | undefined): HTMLElement {
  const element = made("div", "", "target");
  const words = made("div");
  const whose = t(target.is_wearer ? "target_wearer" : "target_person");
  words.append(made("span", whose));
  const isPlace = target.age_s === null;
  const ageMs = Date.now() - target.at_ms;
  const isKnown = !target.unknown && target.lat !== undefined && (isPlace || ageMs <= OLD_MS);
  element.dataset["known"] = String(isKnown);
  if (!isKnown) {
    words.append(made("strong", t("target_unknown")), made("span", t("target_unknown_help")));
    element.append(drawn(undefined, 0), words);
    return element;
  }
  if (own) {
    const { metres, degrees } = way(own, { lat: target.lat!, lon: target.lon! });
    words.append(made("strong", `${distance(metres)} ${t(`point_${POINTS[Math.round(degrees / 45) % 8]}`)}`));
    element.append(drawn({ metres, degrees }, target.accuracy ?? 0), words);
  } else {
    words.append(made("strong", t("own_unknown")));
    element.append(drawn(undefined, 0), words);
  }
  words.append(made("span", `${target.lat!.toFixed(5)}, ${target.lon!.toFixed(5)} ±${Math.round(target.accuracy ?? 0)} m`));
  if (!isPlace) words.append(made("p", t("target_age", { age: span(ageMs) }), ageMs > 60_000 ? "warn" : ""));
  if (target.interrupted) words.append(made("p", t("target_interrupted"), "warn"));
  return element;
}

const distance = (metres: number): string => (metres < 1_000 ? `${Math.round(metres / 10) * 10} m` : `${(metres / 1_000).toFixed(1)} km`);

function way(from: { lat: number; lon: number }, to: { lat: number; lon: number }): { metres: number; degrees: number } {
  const radians = Math.PI / 180;
  const east = (to.lon - from.lon) * radians * Math.cos(((from.lat + to.lat) / 2) * radians) * EARTH_M;
  const north = (to.lat - from.lat) * radians * EARTH_M;
  return { metres: Math.hypot(east, north), degrees: (Math.atan2(east, north) / radians + 360) % 360 };
}

// North is up, the unit is in the middle; the edge is the distance. No map is loaded: a map's maker would learn where the target is.
function drawn(towards: { metres: number; degrees: number } | undefined, accuracy: number): SVGElement {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "-66 -66 132 132");
  svg.setAttribute("aria-hidden", "true");
  const add = (name: string, values: Record<string, string | number>, text = "") => {
    const shape = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(values)) shape.setAttribute(key, String(value));
    shape.textContent = text;
    svg.append(shape);
  };
  add("circle", { r: 50, fill: "none", stroke: "#75808c" });
  add("text", { y: -52, fill: "#c3ccd6", "font-size": 12, "text-anchor": "middle" }, "N");
  add("circle", { r: 5, fill: "#8fc1f0" });
  if (!towards) {
    add("text", { y: 6, fill: "#f2c14e", "font-size": 34, "text-anchor": "middle" }, "?");
    return svg;
  }
  const angle = ((towards.degrees - 90) * Math.PI) / 180;
  const [x, y] = [46 * Math.cos(angle), 46 * Math.sin(angle)];
  const radius = Math.min(40, Math.max(6, (46 * accuracy) / Math.max(towards.metres, 1)));
  add("line", { x1: 0, y1: 0, x2: x, y2: y, stroke: "#f2c14e", "stroke-width": 3 });
  add("circle", { cx: x, cy: y, r: radius, fill: "#f2c14e55", stroke: "#f2c14e" });
  return svg;
}
