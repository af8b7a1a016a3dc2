// The queue of incidents, the most urgent first: one row for each, or one for many notices of one cause. Only changed rows are redrawn.

import type { Alarm } from "./alarms";
import { make, timeOfDay } from "./page";
import type { Words } from "./words";

/** What a destination or a target is; empty where the leg doesn't say it. */
export type Sort = "wearer" | "protected" | "place" | "silent_wearers" | "";
/** Offer of an assignment to a unit of the own leg. */
export interface UnitOffer {
  unit: string;
  class: string;
  state: string;
  number: number;
  asked: number;
  /** Until when the unit may accept, in ms. */
  until: number;
  /** Officer who asked it; empty where the leg asked it by itself. */
  by: string;
  /** When its page showed the offer, in ms; null where that isn't confirmed. */
  received: number | null;
}

export interface Assignment {
  id: string;
  subject: string;
  sort: Sort;
  state: string;
  demand: string;
  offer: number;
  offered: number | null;
  accepted: number | null;
  by: string;
  due: number | null;
  /** State as it is shown: a unit's acceptance is another one than the desk's. */
  shown: string;
  /** Unit of the roster that has accepted; empty for none. */
  unit: string;
  /** Offers to units since the last offer that an alert caused, in the order of asking; empty for another leg. */
  units: UnitOffer[];
  /** Unit that the desk sent by radio. */
  radio: { unit: string; by: string; at: number } | null;
  /** Whether the agency's own system reported the state. */
  system: boolean;
  closed: string;
  /** Whether it is the first contact with the wearer, for which nobody goes. */
  contact: boolean;
  /** Whether it is over, and its desk has to close it with a cause. */
  unclosed: boolean;
}

export interface Incident extends Alarm {
  opened: number;
  ended: number | null;
  level: number;
  /** Deadline of the own agency, in ms. */
  due: number | null;
  demand: string;
  group: string;
  alarm: boolean;
  /** Whether the incident has ended, and the own desk has to close it. */
  unclosed: boolean;
  orders: string[];
  flags: string[];
  /** Number of notes; a greater one means that there is a new note. */
  notes: number;
  legs: Record<string, Assignment[]>;
}

export const LEGS = ["probation", "police", "warning"];
/** States in which an offer waits for an answer. */
export const OFFERS = new Set(["OFFERED", "ESCALATED"]);

/** Class of the words about a panic call: a call that is taken back, or of an incident that has ended, is no alarm any more. */
export function panicClass(incident: Incident): string {
  return incident.ended === null && incident.panic?.withdrawn_ms === null ? "panic" : "panic over";
}

export class Rows {
  readonly incidents = new Map<string, Incident>();
  showEnded = false;
  /** Whether the deadlines are those of this moment: without a connection none is shown. */
  isCurrent = true;
  /** Id of the chosen incident; empty for none. */
  chosen = "";
  #rows = new Map<string, HTMLElement>();
  #drawn = new Map<string, Incident>();
  #open = new Set<string>();
  #order: string[] = [];
  /** Row that is marked as the chosen one. */
  #marked = "";
  /** Rows that are visible, or nearly: only their clocks are updated. */
  #visible = new Set<Element>();
  #observer = new IntersectionObserver((entries) => this.#visibilityChanged(entries), { rootMargin: "200px" });

  constructor(
    private readonly body: HTMLElement,
    private readonly words: Words,
    private readonly leg: string,
    private readonly now: () => number,
    private readonly choose: (incident: string) => void,
    private readonly accept: (incident: Incident) => void,
    private readonly close: (incident: Incident) => void,
  ) {}

  /** Own leg's offers of an incident that wait for an answer. */
  offers(incident: Incident): Assignment[] {
    return (incident.legs[this.leg] ?? []).filter((to) => OFFERS.has(to.state));
  }

  /** Own leg's tasks of an ended incident that its desk has to close. */
  unclosed(incident: Incident): Assignment[] {
    return (incident.legs[this.leg] ?? []).filter((to) => to.unclosed);
  }

  /** The most urgent incident; live ones come before exercises. */
  first(): Incident | undefined {
    const sorted = this.#sorted();
    return sorted.find((incident) => !incident.exercise) ?? sorted[0];
  }

  /** Redraws the queue from `incidents`. Returns the number of rows. */
  draw(): number {
    const shown: string[] = [];
    const groups = new Map<string, Incident[]>();
    for (const incident of this.#sorted()) {
      if (incident.group && !this.#open.has(incident.group)) {
        const many = groups.get(incident.group);
        if (many) {
          many.push(incident);
          continue;
        }
        groups.set(incident.group, [incident]);
        shown.push(`group ${incident.group}`);
      } else shown.push(incident.id);
    }
    const focused = document.activeElement;
    const stay = new Set(shown);
    for (const [key, row] of this.#rows) {
      if (!stay.has(key)) {
        row.remove();
        this.#observer.unobserve(row);
        this.#visible.delete(row);
        this.#rows.delete(key);
        this.#drawn.delete(key);
      }
    }
    const made = shown.map((key) => {
      const many = groups.get(key.slice("group ".length));
      const old = this.#rows.get(key);
      const before = this.#drawn.get(key);
      const row = key.startsWith("group ") && many ? this.#groupRow(key, many) : this.#row(key);
      if (!old) this.#observer.observe(row);
      // Only changed rows can have moved. All others keep their order and stay in the list.
      else if (before !== this.#drawn.get(key) || many) row.remove();
      return row;
    });
    let at = this.body.firstElementChild;
    for (const row of made) {
      if (row === at) at = at.nextElementSibling;
      else this.body.insertBefore(row, at);
    }
    // A row that moves loses the focus.
    if (focused instanceof HTMLElement && focused !== document.activeElement && this.body.contains(focused)) focused.focus();
    this.#order = shown;
    this.mark();
    this.tick();
    return shown.length;
  }

  /** Marks the chosen row, and no other. */
  mark(): void {
    for (const key of [this.#marked, this.chosen]) {
      const row = this.#rows.get(key);
      const isChosen = key === this.chosen;
      row?.classList.toggle("chosen-row", isChosen);
      row?.querySelector(".pick")?.setAttribute("aria-pressed", String(isChosen));
    }
    this.#marked = this.chosen;
  }

  /** Updates the deadline clocks of the visible rows. */
  tick(): void {
    const now = this.now();
    for (const row of this.#visible) this.#clock(row, now);
  }

  #visibilityChanged(entries: IntersectionObserverEntry[]): void {
    const now = this.now();
    for (const entry of entries) {
      if (entry.isIntersecting) {
        this.#visible.add(entry.target);
        this.#clock(entry.target, now);
      } else this.#visible.delete(entry.target);
    }
  }

  #clock(row: Element, now: number): void {
    const cell = row.querySelector<HTMLElement>("[data-due]");
    if (!cell) return;
    const due = Number(cell.dataset["due"]);
    const shown = this.isCurrent ? this.words.countdown(due, now) : this.words.say("due_unknown");
    if (cell.textContent !== shown) cell.textContent = shown;
    cell.classList.toggle("bad", !this.isCurrent || due - now < 10_000);
  }

  /** Chooses the row a number of rows further on. */
  move(by: number): void {
    const ids = this.#order.filter((key) => !key.startsWith("group "));
    const at = ids.indexOf(this.chosen);
    const next = ids[at < 0 ? 0 : Math.max(0, Math.min(ids.length - 1, at + by))];
    if (next === undefined) return;
    this.choose(next);
    this.#rows.get(next)?.querySelector<HTMLElement>(".pick")?.focus();
  }

  #sorted(): Incident[] {
    const all = [...this.incidents.values()].filter((incident) => this.showEnded || incident.ended === null || incident.unclosed);
    const due = (incident: Incident): number => incident.due ?? Infinity;
    const closer = (a: Incident, b: Incident): number => Math.sign(due(a) - due(b)) || 0;
    return all.sort((a, b) => a.level - b.level || Number(a.exercise) - Number(b.exercise) || closer(a, b) || b.opened - a.opened);
  }

  #groupRow(key: string, many: Incident[]): HTMLElement {
    const row = this.#rows.get(key) ?? make("li", { class: "group" });
    const group = many[0]?.group ?? "";
    const text = `${this.words.say(group)} × ${many.length} (${this.words.say("group_of")})`;
    if (row.dataset["text"] !== text) {
      const button = make("button", { type: "button", class: "plain" }, this.words.say("open_group"));
      button.addEventListener("click", () => {
        this.#open.add(group);
        this.draw();
      });
      row.replaceChildren(`${text} `, button);
      row.dataset["text"] = text;
    }
    this.#rows.set(key, row);
    return row;
  }

  #row(id: string): HTMLElement {
    const incident = this.incidents.get(id) as Incident;
    const row = this.#rows.get(id) ?? make("li", { "data-incident": id });
    this.#rows.set(id, row);
    if (this.#drawn.get(id) === incident) return row;
    this.#drawn.set(id, incident);
    const hadFocus = row.contains(document.activeElement) ? document.activeElement?.className : undefined;
    row.className = `level-${incident.level}${id === this.chosen ? " chosen-row" : ""}`;
    const attributes = { type: "button", class: "pick", "aria-pressed": String(id === this.chosen) };
    const pick = make("button", attributes, this.#line(incident), this.#notices(incident), this.#legs(incident));
    pick.addEventListener("click", () => this.choose(id));
    row.replaceChildren(pick);
    const offers = this.offers(incident).length;
    if (offers) {
      const key = offers > 1 ? "desk_all" : "desk_acknowledge";
      const button = make("button", { type: "button", class: "take" }, `${this.words.say(key)}${offers > 1 ? ` (${offers})` : ""}`);
      button.addEventListener("click", () => this.accept(incident));
      row.append(button);
    }
    if (incident.unclosed) {
      const button = make("button", { type: "button", class: "take close" }, this.words.say("desk_close"));
      button.addEventListener("click", () => this.close(incident));
      row.append(button);
    }
    if (hadFocus !== undefined) row.querySelector<HTMLElement>(hadFocus.startsWith("take") ? ".take, .pick" : ".pick")?.focus();
    return row;
  }

  #line(incident: Incident): HTMLElement {
    const line = make("span", { class: "line" });
    if (incident.panic) line.append(make("strong", { class: panicClass(incident) }, this.words.panic(incident.panic)));
    if (incident.unclosed) line.append(make("span", { class: "tag unclosed" }, this.words.say("ended_unclosed")));
    line.append(this.#tag(incident.demand, `tag demand-${incident.demand}`), make("strong", {}, this.words.say(incident.cause)));
    if (incident.exercise) line.append(make("span", { class: "exercise" }, this.words.say("exercise")));
    line.append(make("time", {}, timeOfDay(incident.opened)));
    if (incident.due !== null) line.append(make("span", { class: "due", "data-due": String(incident.due) }));
    return line;
  }

  #notices(incident: Incident): HTMLElement {
    const flags = incident.flags.map((flag) => make("span", { class: "flag" }, this.words.say(`flag_${flag}`)));
    return make("span", { class: "flags" }, ...flags);
  }

  #legs(incident: Incident): HTMLElement {
    const cells = LEGS.map((leg) => {
      const states = [...new Set((incident.legs[leg] ?? []).map((to) => to.shown))];
      const tags = states.map((state) => this.#tag(state, `state state-${state}`));
      return make("span", { "data-leg": leg }, make("small", {}, this.words.say(leg)), ...tags);
    });
    return make("span", { class: "leg-states" }, ...cells);
  }

  #tag(code: string, className: string): HTMLElement {
    return make("span", { class: className }, this.words.say(code));
  }
}
