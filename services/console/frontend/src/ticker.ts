// The list of the newest alerts, below the queue.

import { NoticeCount } from "./badges";
import { byId, make, timeOfDay } from "./page";
import type { Sort } from "./rows";
import type { Words } from "./words";

export interface Alert {
  id: string;
  at: number;
  decided: number;
  kind: string;
  /** BEGUN; OVER where what the kind names is over; CHANGED where the alert alone doesn't say. */
  phase: string;
  demand: string;
  incident: string;
  wearer: string;
  target: string;
  /** What it is about; empty where the alert alone doesn't say it. */
  sort: Sort;
  ring: number;
  distance: number | null;
  exercise: boolean;
  /** Device of the own side with a low battery: its charge in percent, and when it will be empty, in ms, as far as they are known. */
  device?: string;
  charge?: number | null;
  empty?: number | null;
}

const MAX_ALERTS = 100;

export class Ticker {
  #list = byId("alerts");
  #count: NoticeCount;
  /** Buttons that name what an alert is about. */
  #names = new Map<HTMLElement, Alert>();

  constructor(
    private readonly words: Words,
    user: string,
    private readonly choose: (incident: string) => void,
    private readonly nameOf: (alert: Alert) => string,
  ) {
    this.#count = new NoticeCount(words, user);
  }

  /** Forgets all alerts, as the page gets all of them once more. */
  clear(): void {
    this.#list.replaceChildren();
    this.#names.clear();
    this.#count.clear();
  }

  add(alerts: Alert[]): void {
    for (const alert of alerts) this.#list.prepend(this.#item(alert));
    while (this.#list.children.length > MAX_ALERTS) this.#list.lastElementChild?.remove();
    byId("no-alerts").hidden = this.#list.children.length > 0;
    this.#count.add(alerts);
  }

  /** Names once more what the alerts are about: an alert may come before the destinations of its incident. */
  rename(): void {
    for (const [button, alert] of this.#names) {
      const name = this.nameOf(alert);
      if (!button.isConnected) this.#names.delete(button);
      else if (button.textContent !== name) button.textContent = name;
    }
  }

  #item(alert: Alert): HTMLElement {
    const { words } = this;
    const item = make("li", {}, make("time", {}, timeOfDay(alert.at)), " ");
    item.append(make("span", { class: `tag demand-${alert.demand}` }, words.say(alert.demand)), ` ${words.alert(alert.kind, alert.phase)}`);
    if (alert.ring) item.append(` ${alert.ring} m`);
    // Entering a ring, the distance is the ring's radius.
    if (alert.distance !== null && Math.round(alert.distance) !== alert.ring) item.append(` (${Math.round(alert.distance)} m)`);
    if (alert.exercise) item.append(" ", make("span", { class: "exercise" }, words.say("exercise")));
    if (alert.device) {
      if (typeof alert.charge === "number") item.append(` ${Math.round(alert.charge)} %`);
      if (typeof alert.empty === "number") item.append(` ${words.say("charge_left", { for: words.time(alert.empty - alert.at) })}`);
      const href = `/watched-devices/${encodeURIComponent(alert.device)}`;
      item.append(" ", make("a", { href }, words.say("device_named"), " ", make("code", {}, alert.device)));
    }
    if (alert.incident) {
      const button = make("button", { type: "button", class: "plain" }, this.nameOf(alert));
      button.addEventListener("click", () => this.choose(alert.incident));
      this.#names.set(button, alert);
      item.append(" ", button);
    }
    return item;
  }
}
