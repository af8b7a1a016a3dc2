// Sentences of the chosen incident's card. No DOM, no clock.

import { bearingDeg, distanceM } from "./geo";
import type { LonLat } from "./geo";
import { timeOfDay } from "./page";
import type { NamedPlace, NamedPoint } from "./places";

export type Texts = Record<string, string>;
/** Time in ms, longitude, latitude. */
export type TrackPoint = [number, number, number];

/** Position of a target with its accuracy in m; for a place, its radius. */
export interface Located {
  at: [number, number, number] | null;
  unknown: boolean;
  /** Time of the fix in ms; null for a place. */
  fix: number | null;
}

/** A protected person or place, with the name that the card uses. */
export interface Destination extends Located {
  name: string;
  isPlace: boolean;
}

/** Distance in m below which two positions may be one. */
const SAME_M = 10;
/** Time over which a movement is told, in ms, and the least way that counts as one, in m. */
const MOVED_MS = 120_000;
const MOVED_M = 30;
const MINUTE_MS = 60_000;

/** A protected person's call for help, and what is known of her since. */
export interface Panic {
  called_ms: number;
  /** When she took the call back, in ms; null if she didn't. */
  withdrawn_ms: number | null;
  /** Her answer to the warning: `confirmed`, `earlier` if that was before the call, or a flag of her, such as `duress`; empty for none. */
  answer: string;
  /** When she confirmed the warning, in ms; null where that is unknown. */
  answered_ms: number | null;
}

export class Words {
  constructor(private readonly texts: Texts) {}

  /** Returns the text of a key, with its `{x}` replaced. */
  say(key: string, values: Record<string, string | number> = {}): string {
    return (this.texts[key] ?? key).replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
  }

  /** Returns an alert's kind in words, and whether what it names is over. */
  alert(kind: string, phase: string): string {
    return phase === "BEGUN" ? this.say(kind) : `${this.say(kind)}: ${this.say(`phase_${phase}`)}`;
  }

  /** Returns a length of time in ms, in words: 45 s, 12 min, 3 h. */
  time(ms: number): string {
    const s = Math.max(0, Math.round(ms / 1000));
    if (s < 90) return `${s}${this.say("sec")}`;
    return s < 5_400 ? `${Math.round(s / 60)}${this.say("min")}` : `${Math.round(s / 3_600)}${this.say("hour")}`;
  }

  /** Returns how long a deadline is away, or for how long it is over. */
  left(dueMs: number, nowMs: number): string {
    return this.say(dueMs >= nowMs ? "left" : "late", { n: this.time(Math.abs(dueMs - nowMs)) });
  }

  /** Returns when she called for help, and whether she took it back or how she answered the warning. */
  panic(call: Panic): string {
    const called = this.say("panic_called", { at: timeOfDay(call.called_ms) });
    if (call.withdrawn_ms !== null) return `${called} · ${this.say("panic_withdrawn", { at: timeOfDay(call.withdrawn_ms) })}`;
    const answer = this.say(call.answer ? `panic_${call.answer}` : "panic_no_answer");
    return `${called} · ${answer}${call.answered_ms === null ? "" : ` ${timeOfDay(call.answered_ms)}`}`;
  }

  /** Returns how long a deadline is away, as a clock shows it: 45 s, or overdue 12 s. */
  countdown(dueMs: number, nowMs: number): string {
    const leftS = Math.round((dueMs - nowMs) / 1000);
    return `${leftS < 0 ? `${this.say("overdue")} ` : ""}${this.time(1000 * Math.abs(leftS))}`;
  }

  wind(degrees: number): string {
    return this.say(`wind_${Math.round(degrees / 45) % 8}`);
  }

  /** Returns the band in which a distance lies, as both positions have an accuracy. Empty where they may be one. */
  band(distance: number, accuracy: number): string {
    const from = rounded(Math.max(0, distance - accuracy));
    const to = rounded(distance + accuracy);
    if (from < SAME_M) return "";
    return from === to ? this.say("band_about", { m: `${to} m` }) : this.say("band", { from, to });
  }

  /** Returns a place in words: its area, the nearest address or street, and the nearest landmark or town. Empty where no area is known. */
  place(known: NamedPlace): string {
    const area = known.areas.join(" ");
    if (!area) return "";
    const { street, landmark, address } = known;
    const place = address ? this.#fromPoint("address", area, address) : street ? this.say("near_road", { place: area, road: street }) : area;
    if (landmark) return this.#fromPoint("landmark", place, landmark);
    return known.town && place === area ? this.#fromPoint("town", area, known.town) : place;
  }

  /** Returns how far and in which direction a place is from a point of a kind. */
  #fromPoint(kind: "address" | "landmark" | "town", place: string, point: NamedPoint): string {
    const m = rounded(point.distanceM);
    const values = { place, name: point.name, wind: this.wind(point.bearingDeg), m };
    if (m >= SAME_M) return this.say(`from_${kind}`, values);
    return kind === "town" ? place : this.say(`at_${kind}`, values);
  }

  /** Returns where the wearer is: place, age and accuracy, distance and direction from each destination, movement. */
  where(wearer: Located | undefined, place: string, track: TrackPoint[], to: Destination[], nowMs: number): string[] {
    if (!wearer?.at) return [this.say("where_none")];
    const said = [this.say(wearer.unknown ? "where_unknown" : "where_wearer", { place })];
    if (wearer.unknown) said.push(this.say("where_last", { place }));
    const age = this.time(nowMs - (wearer.fix ?? nowMs));
    said.push(this.say("where_age", { age, m: Math.round(wearer.at[2]) }));
    said.push(...to.map((destination) => this.#fromDestination(wearer.at as LonLat3, destination)));
    if (!wearer.unknown) said.push(...this.#movement(track, nearest(wearer.at, to), wearer.at[2]));
    return said;
  }

  #fromDestination(wearer: LonLat3, to: Destination): string {
    if (!to.at || to.unknown) return this.say("where_person_unknown", { to: to.name });
    const here: LonLat = [wearer[0], wearer[1]];
    const there: LonLat = [to.at[0], to.at[1]];
    // Distances from a place count from its edge, as the order's rings do.
    const distance = Math.max(0, distanceM(here, there) - (to.isPlace ? to.at[2] : 0));
    const band = this.band(distance, wearer[2] + (to.isPlace ? 0 : to.at[2]));
    if (!band) return this.say("where_at", { to: to.name });
    return this.say("where_band", { to: to.name, band, wind: this.wind(bearingDeg(there, here)) });
  }

  #movement(track: TrackPoint[], to: Destination | undefined, accuracy: number): string[] {
    const last = track.at(-1);
    if (!last) return [];
    const before = track.find((point) => point[0] >= last[0] - MOVED_MS) ?? last;
    const tookMs = last[0] - before[0];
    if (tookMs < MINUTE_MS / 2) return [];
    const moved = distanceM(position(before), position(last));
    if (moved < Math.max(MOVED_M, accuracy)) return tookMs >= MOVED_MS * 0.75 ? [this.say("standing")] : [];
    const kmh = Math.round((moved / tookMs) * 3_600);
    const said = [this.say("moving", { wind: this.wind(bearingDeg(position(before), position(last))), kmh })];
    const minute = track.find((point) => point[0] >= last[0] - MINUTE_MS) ?? last;
    if (to?.at && !to.unknown && minute !== last) {
      const there: LonLat = [to.at[0], to.at[1]];
      const change = distanceM(position(minute), there) - distanceM(position(last), there);
      const m = rounded(Math.abs(change));
      if (m >= SAME_M) said.push(this.say(change > 0 ? "nearer" : "farther", { m }));
    }
    return said;
  }
}

type LonLat3 = [number, number, number];

function position([, lon, lat]: TrackPoint): LonLat {
  return [lon, lat];
}

function nearest(wearer: LonLat3, to: Destination[]): Destination | undefined {
  const from = (destination: Destination): number =>
    destination.at && !destination.unknown ? distanceM([wearer[0], wearer[1]], [destination.at[0], destination.at[1]]) : Infinity;
  return [...to].sort((a, b) => from(a) - from(b))[0];
}

/** Rounds a distance in m to what can be said of it: to 10 m below 200 m, 50 m below 1 km, 100 m beyond. */
function rounded(m: number): number {
  const step = m < 200 ? 10 : m < 1_000 ? 50 : 100;
  return Math.round(m / step) * step;
}
