// Alarms of incidents, on the live page and on every other page of a desk: a sound by severity, the flashing title and the announcement,
// each once for what is new.

import { byId, painted, timeOfDay } from "./page";
import { flash, isSoundOn, play } from "./sound";
import type { Sound } from "./sound";
import type { Panic, Words } from "./words";

/** What an alarm needs of an incident. */
export interface Alarm {
  id: string;
  cause: string;
  exercise: boolean;
  /** Sound of the incident; empty for none. */
  sound: Sound | "";
  panic: Panic | null;
}

const GRAVITY: Sound[] = ["review", "demand", "grave", "panic"];
/** Key under which a window keeps what it has announced, so that its next page doesn't announce it once more. */
const ANNOUNCED = "tandem-announced";

/** What was announced of an incident. */
interface Announced {
  sound: Sound;
  /** Time of the panic call, in ms; 0 without one. Each further call is announced. */
  calledMs: number;
}

export class Alarms {
  #announced = new Map<string, Announced>(JSON.parse(sessionStorage.getItem(ANNOUNCED) ?? "[]") as [string, Announced][]);

  constructor(private readonly words: Words) {}

  /** Announces a new demand once, and once more where it becomes graver. Exercises are announced without a sound. */
  receive(alarm: Alarm): void {
    if (!alarm.sound) return this.forget(alarm.id);
    const now: Announced = { sound: alarm.sound, calledMs: alarm.sound === "panic" ? (alarm.panic?.called_ms ?? 0) : 0 };
    const before = this.#announced.get(alarm.id);
    if (before && !isNews(now, before)) return;
    this.#announced.set(alarm.id, now);
    this.#keep();
    const said = now.calledMs ? this.words.say("new_panic", { at: timeOfDay(now.calledMs) }) : this.words.say("new_alarm");
    this.announce(`${alarm.exercise ? `${this.words.say("exercise")}: ` : ""}${said}: ${this.words.say(alarm.cause)}`);
    if (alarm.exercise) return;
    flash(said);
    this.sound(now.sound);
  }

  /** Forgets an incident that is gone, or that has no alarm any more. */
  forget(incident: string): void {
    if (this.#announced.delete(incident)) this.#keep();
  }

  /** Forgets all incidents but these. */
  forgetAllBut(incidents: Set<string>): void {
    for (const incident of [...this.#announced.keys()]) if (!incidents.has(incident)) this.forget(incident);
  }

  /** Has a screen reader read a text. */
  announce(said: string): void {
    byId("announce").textContent = said;
  }

  sound(which: Sound): void {
    // Opening the sound device may take longer than a frame.
    if (isSoundOn()) void painted().then(() => play(which));
  }

  #keep(): void {
    sessionStorage.setItem(ANNOUNCED, JSON.stringify([...this.#announced]));
  }
}

function isNews(now: Announced, before: Announced): boolean {
  const gravity = GRAVITY.indexOf(now.sound) - GRAVITY.indexOf(before.sound);
  return gravity > 0 || (gravity === 0 && now.calledMs > before.calledMs);
}
