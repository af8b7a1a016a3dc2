// Badges of the live page: match reviews that wait, notices that nobody has read, devices that need somebody.

import { byId } from "./page";
import type { Words } from "./words";

/** Match reviews that wait for a person. */
export interface Reviews {
  open: number;
  /** Since when the oldest has been waiting, in ms since 1970 UTC. */
  since_ms: number | null;
  /** Reviews that have waited for 15 minutes or more. */
  alarmed: number;
}

/** The match reviews that wait. Each sounds once, when its 15 minutes are over, and stays until somebody decides it. */
export class ReviewBadge {
  #reviews: Reviews | null = null;
  #alarmed = 0;

  constructor(
    private readonly words: Words,
    private readonly now: () => number,
    private readonly sound: () => void,
  ) {}

  receive(received: Reviews | null): void {
    this.#reviews = received;
    if (received) {
      showReviewAlarm(received, this.words);
      if (received.alarmed > this.#alarmed) this.sound();
      this.#alarmed = received.alarmed;
    }
    this.tick();
  }

  /** Updates the age of the oldest review. */
  tick(): void {
    showReviews(this.#reviews, this.words, this.now());
  }
}

/** Shows how many match reviews wait, and for how long the oldest has. `reviews` is null where that is unknown. */
function showReviews(reviews: Reviews | null, words: Words, now: number): void {
  const badge = document.getElementById("review-badge");
  if (!badge) return;
  const waiting = reviews?.open ?? 0;
  const minutes = Math.max(0, Math.floor((now - (reviews?.since_ms ?? now)) / 60_000));
  const shown = reviews === null ? "?" : `${waiting} · ${minutes}${words.say("minutes")}`;
  if (badge.textContent !== shown) badge.textContent = shown;
  badge.title = reviews === null ? words.say("reviews_unknown") : "";
  badge.hidden = reviews !== null && waiting === 0;
  badge.classList.toggle("alarm", (reviews?.alarmed ?? 0) > 0);
}

/** Shows the bar of match reviews that have waited for too long. */
function showReviewAlarm(reviews: Reviews, words: Words): void {
  const bar = byId("review-alarm");
  bar.hidden = reviews.alarmed === 0;
  const shown = reviews.alarmed ? `${words.say("reviews_alarm")} (${reviews.alarmed})` : "";
  const link = bar.querySelector("a");
  if (link && link.textContent !== shown) link.textContent = shown;
}

/** Shows how many devices of the own side need somebody. `count` is null where that is unknown, and undefined for a role that has none. */
export function showDevices(count: number | null | undefined, words: Words): void {
  badge("silent", count === null ? words.say("silent_unknown") : words.say("silent_badge", { n: count ?? 0 }), count !== undefined && count !== 0);
}

interface Notice {
  /** When it was decided, in ms. What it is about may be hours before, and an alert that comes late is news all the same. */
  decided: number;
  exercise: boolean;
}

/** Counts the notices that nobody has read. */
export class NoticeCount {
  #unread = 0;
  #newest = 0;
  #readUntil: number;

  constructor(
    private readonly words: Words,
    user: string,
  ) {
    const key = `tandem-read-until ${user}`;
    this.#readUntil = Number(sessionStorage.getItem(key) ?? 0);
    byId("mark-read").addEventListener("click", () => {
      this.#readUntil = this.#newest;
      sessionStorage.setItem(key, String(this.#readUntil));
      this.#unread = 0;
      this.#show();
    });
  }

  /** Forgets all notices, as the page gets all of them once more. */
  clear(): void {
    this.#unread = 0;
  }

  add(notices: Notice[]): void {
    for (const notice of notices.filter((each) => !each.exercise)) {
      this.#newest = Math.max(this.#newest, notice.decided);
      if (notice.decided > this.#readUntil) this.#unread += 1;
    }
    this.#show();
  }

  #show(): void {
    badge("unread", this.words.say("unread", { n: this.#unread }), this.#unread > 0);
    byId("mark-read").hidden = !this.#unread;
  }
}

function badge(id: string, text: string, isShown: boolean): void {
  const shown = byId(id);
  if (shown.textContent !== text) shown.textContent = text;
  shown.hidden = !isShown;
}
