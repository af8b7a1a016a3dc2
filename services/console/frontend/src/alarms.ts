// Alarms of the live page: a sound by severity, the flashing title and the announcement, each once for what is new.

import { showReviewAlarm, showReviews } from "./badges";
import type { Reviews } from "./badges";
import { byId, painted } from "./page";
import type { Incident } from "./rows";
import { flash, play } from "./sound";
import type { Sound } from "./sound";
import type { Words } from "./words";

/** Flags of an incident that sound the gravest. */
const GRAVE = new Set(["duress", "distress", "losing"]);

export class Alarms {
  /** Last sound of each incident. */
  #sounded = new Map<string, Sound>();
  #reviews: Reviews | null = null;
  #alarmedReviews = 0;

  constructor(
    private readonly words: Words,
    private readonly now: () => number,
  ) {
    byId("test-sound").addEventListener("click", () => play("demand"));
  }

  /** Sounds a new demand once, and once more where it becomes grave. Exercises are announced without a sound. */
  receive(incident: Incident): void {
    const isGrave = incident.flags.some((flag) => GRAVE.has(flag)) && incident.ended === null;
    const which = isGrave ? "grave" : incident.alarm ? "demand" : undefined;
    const before = this.#sounded.get(incident.id);
    if (!which) this.#sounded.delete(incident.id);
    else if (before !== which && before !== "grave") {
      this.#sounded.set(incident.id, which);
      const kind = incident.exercise ? `${this.words.say("exercise")}: ` : "";
      this.announce(`${kind}${this.words.say("new_alarm")}: ${this.words.say(incident.cause)}`);
      if (incident.exercise) return;
      flash(this.words.say("new_alarm"));
      this.#sound(which);
    }
  }

  /** Forgets an incident that is gone. */
  forget(incident: string): void {
    this.#sounded.delete(incident);
  }

  /** Shows the match reviews that wait. Each sounds once, when its 15 minutes are over, and stays until somebody decides it. */
  receiveReviews(received: Reviews | null): void {
    this.#reviews = received;
    if (received) {
      showReviewAlarm(received, this.words);
      if (received.alarmed > this.#alarmedReviews) {
        flash(this.words.say("reviews"));
        this.#sound("review");
      }
      this.#alarmedReviews = received.alarmed;
    }
    this.tick();
  }

  /** Updates the age of the oldest review. */
  tick(): void {
    showReviews(this.#reviews, this.words, this.now());
  }

  /** Has a screen reader read a text. */
  announce(said: string): void {
    byId("announce").textContent = said;
  }

  #sound(which: Sound): void {
    // Opening the sound device may take longer than a frame.
    if (byId<HTMLInputElement>("sound").checked) void painted().then(() => play(which));
  }
}
