// The queue of incidents, the most urgent first: one row for each, or one for many notices of one cause. Only changed rows are redrawn.

import { make, timeOfDay } from "./page";
import type { Words } from "./words";

export interface Assignment {
  id: string;
  subject: string;
  state: string;
  demand: string;
  offer: number;
  offered: number | null;
  accepted: number | null;
  by: string;
  due: number | null;
  /** Unit that is asked or goes; empty where the desk itself is asked, and for another leg. */
  unit: string;
  closed: string;
  /** Whether it is the first contact with the wearer, for which nobody goes. */
  contact: boolean;
}

export interface Incident {
  id: string;
  opened: number;
  ended: number | null;
  level: number;
  due: number | null;
  demand: string;
  cause: string;
  group: string;
  alarm: boolean;
  exercise: boolean;
  orders: string[];
  flags: string[];
  /** Number of notes; a greater one means that there is a new note. */
  notes: number;
  legs: Record<string, Assignment[]>;
}

export const LEGS = ["probation", "police", "warning"];
/** States in which an offer waits for an answer. */
export const OFFERS = new Set(["OFFERED", "ESCALATED"]);

export class Rows {
  readonly incidents = new Map<string, Incident>();
  showEnded = false;
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
  ) {}

  /** Own leg's offers of an incident that wait for an answer. */
  offers(incident: Incident): Assignment[] {
    return (incident.legs[this.leg] ?? []).filter((to) => OFFERS.has(to.state));
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
    const left = Math.round((Number(cell.dataset["due"]) - now) / 1000);
    const shown = `${left < 0 ? `${this.words.say("overdue")} ` : ""}${this.words.time(1000 * Math.abs(left))}`;
    if (cell.textContent !== shown) cell.textContent = shown;
    cell.classList.toggle("bad", left < 10);
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
    const all = [...this.incidents.values()].filter((incident) => this.showEnded || incident.ended === null);
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
    if (hadFocus !== undefined) row.querySelector<HTMLElement>(hadFocus === "take" ? ".take, .pick" : ".pick")?.focus();
    return row;
  }

  #line(incident: Incident): HTMLElement {
    const line = make("span", { class: "line" }, this.#tag(incident.demand, `tag demand-${incident.demand}`));
    line.append(make("strong", {}, this.words.say(incident.cause)));
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
      const states = [...new Set((incident.legs[leg] ?? []).map((to) => to.state))];
      const tags = states.map((state) => this.#tag(state, `state state-${state}`));
      return make("span", { "data-leg": leg }, make("small", {}, this.words.say(leg)), ...tags);
    });
    return make("span", { class: "leg-states" }, ...cells);
  }

  #tag(code: string, className: string): HTMLElement {
    return make("span", { class: className }, this.words.say(code));
  }
}
