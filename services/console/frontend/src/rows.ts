// The list of incidents: one row for each, or one for many notices of one cause. Only what has changed is touched.

import { make, timeOfDay } from "./page";

export interface Assignment {
  id: string;
  subject: string;
  state: string;
  demand: string;
  offer: number;
  due: number | null;
  /** Who is asked or goes; empty where that is the desk itself, and of another leg. */
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
/** States in which the leg takes an answer. */
const OFFERS = new Set(["OFFERED", "ESCALATED"]);

export class Rows {
  readonly incidents = new Map<string, Incident>();
  showEnded = false;
  #rows = new Map<string, HTMLTableRowElement>();
  #drawn = new Map<string, Incident>();
  #open = new Set<string>();
  /** Rows that can be seen, or soon: only their clocks are kept. */
  #inSight = new Set<Element>();
  #sight = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: "200px" });

  constructor(
    private readonly body: HTMLTableSectionElement,
    private readonly texts: Record<string, string>,
    private readonly leg: string,
    private readonly now: () => number,
    private readonly take: (incident: string, assignment: Assignment) => void,
  ) {}

  /** Brings the table to what `incidents` says; returns how many are shown. */
  draw(): number {
    const shown: string[] = [];
    const groups = new Map<string, Incident[]>();
    for (const one of this.#sorted()) {
      if (one.group && !this.#open.has(one.group)) {
        const many = groups.get(one.group);
        if (many) {
          many.push(one);
          continue;
        }
        groups.set(one.group, [one]);
        shown.push(`group ${one.group}`);
      } else shown.push(one.id);
    }
    const focused = document.activeElement;
    const stay = new Set(shown);
    for (const [key, row] of this.#rows) {
      if (!stay.has(key)) {
        row.remove();
        this.#sight.unobserve(row);
        this.#inSight.delete(row);
        this.#rows.delete(key);
        this.#drawn.delete(key);
      }
    }
    const made = shown.map((key) => {
      const many = groups.get(key.slice("group ".length));
      const old = this.#rows.get(key);
      const before = this.#drawn.get(key);
      const row = key.startsWith("group ") && many ? this.#groupRow(key, many) : this.#row(key);
      if (!old) this.#sight.observe(row);
      // Only what has changed can have changed its place: all others stay in their order, and none of them is moved.
      else if (before !== this.#drawn.get(key) || many) row.remove();
      return row;
    });
    let at = this.body.firstElementChild;
    for (const row of made) {
      if (row === at) at = at.nextElementSibling;
      else this.body.insertBefore(row, at);
    }
    // A row that is moved loses the focus.
    if (focused instanceof HTMLElement && focused !== document.activeElement && this.body.contains(focused)) focused.focus();
    this.tick();
    return shown.length;
  }

  /** The deadline clocks of the rows in sight. */
  tick(): void {
    const now = this.now();
    for (const row of this.#inSight) this.#clock(row, now);
  }

  #seen(entries: IntersectionObserverEntry[]): void {
    const now = this.now();
    for (const one of entries) {
      if (one.isIntersecting) {
        this.#inSight.add(one.target);
        this.#clock(one.target, now);
      } else this.#inSight.delete(one.target);
    }
  }

  #clock(row: Element, now: number): void {
    const cell = row.querySelector<HTMLElement>("[data-due]");
    if (!cell) return;
    const left = Math.round((Number(cell.dataset["due"]) - now) / 1000);
    const told = left >= 0 ? `${left} s` : `${this.texts["overdue"]} ${-left} s`;
    if (cell.textContent !== told) cell.textContent = told;
    cell.classList.toggle("bad", left < 10);
  }

  /** Moves the focus so many rows on. */
  move(by: number): void {
    const links = [...this.body.querySelectorAll<HTMLElement>("a, .group button")];
    const at = links.findIndex((one) => one.closest("tr") === document.activeElement?.closest("tr"));
    links[Math.max(0, Math.min(links.length - 1, at + by))]?.focus();
  }

  /** Takes what the own leg is offered in the row that has the focus, or in the first one. */
  takeFocused(): void {
    const row = document.activeElement?.closest("tr") ?? this.body;
    row.querySelector<HTMLButtonElement>("button.take")?.click();
  }

  #sorted(): Incident[] {
    const all = [...this.incidents.values()].filter((one) => this.showEnded || one.ended === null);
    const due = (one: Incident): number => one.due ?? Infinity;
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
    const one = this.incidents.get(id) as Incident;
    const row = this.#rows.get(id) ?? make("tr", { "data-incident": id });
    this.#rows.set(id, row);
    if (this.#drawn.get(id) === one) return row;
    this.#drawn.set(id, one);
    const hadFocus = row.contains(document.activeElement) ? document.activeElement?.className : undefined;
    row.className = `level-${one.level}`;
    row.replaceChildren(
      make("td", {}, this.#tag(one.demand, `tag demand-${one.demand}`), " ", this.texts[one.cause] ?? one.cause),
      one.due === null ? make("td") : make("td", { class: "number", "data-due": String(one.due) }),
      this.#name(one),
      ...LEGS.map((leg) => this.#leg(one.id, leg, one.legs[leg] ?? [])),
    );
    if (hadFocus !== undefined) (row.querySelector<HTMLElement>(".take") ?? row.querySelector<HTMLElement>("a"))?.focus();
    return row;
  }

  #name(one: Incident): HTMLElement {
    const cell = make("th", { scope: "row" }, make("a", { href: `/incidents/${one.id}` }, one.id.replace("incident-", "")));
    cell.append(make("small", {}, ` ${timeOfDay(one.opened)}`));
    if (one.exercise) cell.append(" ", make("span", { class: "exercise" }, this.texts["exercise"] ?? ""));
    for (const flag of one.flags) cell.append(" ", make("span", { class: "flag" }, this.texts[`flag_${flag}`] ?? flag));
    return cell;
  }

  #leg(incident: string, leg: string, assignments: Assignment[]): HTMLElement {
    const cell = make("td", { "data-leg": leg });
    for (const one of assignments) {
      const line = make("div", { class: "assignment" }, this.#tag(one.state, `state state-${one.state}`));
      if (leg === this.leg) {
        const unit = one.unit ? `${one.unit} → ` : "";
        line.append(" ", make("small", { title: `${unit}${one.subject}` }, `${unit}${shortened(one.subject)}`));
      }
      if (leg === this.leg && OFFERS.has(one.state)) {
        const name = `${this.texts["take"]} ${one.subject}`;
        const button = make("button", { type: "button", class: "take", "aria-label": name }, this.texts["take"] ?? "");
        button.addEventListener("click", () => this.take(incident, one));
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

/** Of `order/place` the place, and no more than fits. */
function shortened(subject: string): string {
  const name = subject.split("/").at(-1) ?? subject;
  return name.length > 19 ? `${name.slice(0, 18)}…` : name;
}
