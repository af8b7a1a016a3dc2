// The list of incidents: one row for each, or one for many notices of one cause. Only changed rows are redrawn.

import { make, timeOfDay } from "./page";

export interface Assignment {
  id: string;
  subject: string;
  state: string;
  demand: string;
  offer: number;
  due: number | null;
  /** Unit that is asked or goes; empty where the desk itself is asked, and for another leg. */
  unit: string;
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
  flags: string[];
  legs: Record<string, Assignment[]>;
}

const LEGS = ["probation", "police", "warning"];
/** States in which an offer waits for an answer. */
const OFFERS = new Set(["OFFERED", "ESCALATED"]);

export class Rows {
  readonly incidents = new Map<string, Incident>();
  showEnded = false;
  #rows = new Map<string, HTMLTableRowElement>();
  #drawn = new Map<string, Incident>();
  #open = new Set<string>();
  /** Rows that are visible, or nearly: only their clocks are updated. */
  #visible = new Set<Element>();
  #observer = new IntersectionObserver((entries) => this.#visibilityChanged(entries), { rootMargin: "200px" });

  constructor(
    private readonly body: HTMLTableSectionElement,
    private readonly texts: Record<string, string>,
    private readonly leg: string,
    private readonly now: () => number,
    private readonly accept: (incident: string, assignment: Assignment) => void,
  ) {}

  /** Redraws the table from `incidents`. Returns the number of rows. */
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
      // Only changed rows can have moved. All others keep their order and stay in the table.
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
    this.tick();
    return shown.length;
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
    const shown = left >= 0 ? `${left} s` : `${this.texts["overdue"]} ${-left} s`;
    if (cell.textContent !== shown) cell.textContent = shown;
    cell.classList.toggle("bad", left < 10);
  }

  /** Moves the focus by a number of rows. */
  move(by: number): void {
    const links = [...this.body.querySelectorAll<HTMLElement>("a, .group button")];
    const at = links.findIndex((link) => link.closest("tr") === document.activeElement?.closest("tr"));
    links[Math.max(0, Math.min(links.length - 1, at + by))]?.focus();
  }

  /** Acknowledges the own leg's offer in the focused row, or in the first row. */
  takeFocused(): void {
    const row = document.activeElement?.closest("tr") ?? this.body;
    row.querySelector<HTMLButtonElement>("button.take")?.click();
  }

  #sorted(): Incident[] {
    const all = [...this.incidents.values()].filter((incident) => this.showEnded || incident.ended === null);
    const due = (incident: Incident): number => incident.due ?? Infinity;
    return all.sort((a, b) => a.level - b.level || Math.sign(due(a) - due(b)) || b.opened - a.opened);
  }

  #groupRow(key: string, many: Incident[]): HTMLTableRowElement {
    const row = this.#rows.get(key) ?? make("tr", { class: "group" });
    const group = many[0]?.group ?? "";
    const text = `${this.texts[group] ?? group} × ${many.length} (${this.texts["group_of"]})`;
    if (row.dataset["text"] !== text) {
      const button = make("button", { type: "button", class: "plain" }, this.texts["open_group"] ?? "");
      button.addEventListener("click", () => {
        this.#open.add(group);
        this.draw();
      });
      row.replaceChildren(make("td", { colspan: "6" }, `${text} `, button));
      row.dataset["text"] = text;
    }
    this.#rows.set(key, row);
    return row;
  }

  #row(id: string): HTMLTableRowElement {
    const incident = this.incidents.get(id) as Incident;
    const row = this.#rows.get(id) ?? make("tr", { "data-incident": id });
    this.#rows.set(id, row);
    if (this.#drawn.get(id) === incident) return row;
    this.#drawn.set(id, incident);
    const hadFocus = row.contains(document.activeElement) ? document.activeElement?.className : undefined;
    row.className = `level-${incident.level}`;
    row.replaceChildren(
      make("td", {}, this.#tag(incident.demand, `tag demand-${incident.demand}`), " ", this.texts[incident.cause] ?? incident.cause),
      incident.due === null ? make("td") : make("td", { class: "number", "data-due": String(incident.due) }),
      this.#name(incident),
      ...LEGS.map((leg) => this.#leg(incident.id, leg, incident.legs[leg] ?? [])),
    );
    if (hadFocus !== undefined) (row.querySelector<HTMLElement>(".take") ?? row.querySelector<HTMLElement>("a"))?.focus();
    return row;
  }

  #name(incident: Incident): HTMLElement {
    const cell = make("th", { scope: "row" }, make("a", { href: `/incidents/${incident.id}` }, incident.id.replace("incident-", "")));
    cell.append(make("small", {}, ` ${timeOfDay(incident.opened)}`));
    if (incident.exercise) cell.append(" ", make("span", { class: "exercise" }, this.texts["exercise"] ?? ""));
    for (const flag of incident.flags) cell.append(" ", make("span", { class: "flag" }, this.texts[`flag_${flag}`] ?? flag));
    return cell;
  }

  #leg(incident: string, leg: string, assignments: Assignment[]): HTMLElement {
    const cell = make("td", { "data-leg": leg });
    for (const to of assignments) {
      const line = make("div", { class: "assignment" }, this.#tag(to.state, `state state-${to.state}`));
      if (leg === this.leg) {
        const unit = to.unit ? `${to.unit} → ` : "";
        line.append(" ", make("small", { title: `${unit}${to.subject}` }, `${unit}${shortened(to.subject)}`));
      }
      if (leg === this.leg && OFFERS.has(to.state)) {
        const name = `${this.texts["take"]} ${to.subject}`;
        const button = make("button", { type: "button", class: "take", "aria-label": name }, this.texts["take"] ?? "");
        button.addEventListener("click", () => this.accept(incident, to));
        line.append(" ", button);
      }
      cell.append(line);
    }
    return cell;
  }

  #tag(code: string, className: string): HTMLElement {
    return make("span", { class: className }, this.texts[code] ?? code);
  }
}

/** Shortens a subject to what fits; of `order/place` it keeps the place. */
function shortened(subject: string): string {
  const name = subject.split("/").at(-1) ?? subject;
  return name.length > 19 ? `${name.slice(0, 18)}…` : name;
}
