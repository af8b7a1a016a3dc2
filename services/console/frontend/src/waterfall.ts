// The waterfall of a trace: folding, zoom, and filters. The table itself comes from the server and reads without this script.

import { byId } from "./page";

/** Width of the bars' coordinates. */
const WHOLE = 1_000;
/** Each step of the zoom shows this share of the time before it. */
const ZOOM = 0.5;
const LEAST_SHOWN = WHOLE / 4_096;
const TICKS = 4;

/** Formats a duration in microseconds: 86 ms, 2.01 s, 3725.1 s. */
export function formatted(us: number): string {
  if (us < 999_500) return `${(us / 1_000).toFixed(0)} ms`;
  return us < 1_000_000_000 ? `${(us / 1e6).toFixed(2)} s` : `${(us / 1e6).toFixed(1)} s`;
}

/** Returns the part of a range that a zoom by `factor` about its middle shows, within 0 to WHOLE. */
export function zoomed([from, shown]: readonly [number, number], factor: number): [number, number] {
  const wide = Math.min(WHOLE, Math.max(LEAST_SHOWN, shown * factor));
  return [Math.min(WHOLE - wide, Math.max(0, from + (shown - wide) / 2)), wide];
}

class Waterfall {
  readonly #rows: HTMLTableRowElement[];
  readonly #bars: SVGSVGElement[];
  readonly #parents = new Map<HTMLTableRowElement, HTMLTableRowElement | undefined>();
  #folded = new Set<HTMLTableRowElement>();
  #from = 0;
  #shown = WHOLE;

  constructor(private readonly table: HTMLTableElement) {
    this.#rows = [...table.querySelectorAll<HTMLTableRowElement>("tbody tr")];
    this.#bars = [...table.querySelectorAll<SVGSVGElement>(".bars svg")];
    const byId_ = new Map(this.#rows.map((row) => [row.dataset["span"] ?? "", row]));
    for (const row of this.#rows) {
      this.#parents.set(row, byId_.get(row.dataset["parent"] ?? ""));
      row.querySelector("button.fold")?.addEventListener("click", () => this.#toggle(row));
    }
    const on = (id: string, act: () => void): void => byId(id).addEventListener("click", act);
    on("fold-all", () => this.#fold(this.#rows.filter((row) => row.querySelector("button.fold") && !this.#parents.get(row))));
    on("unfold-all", () => this.#fold([]));
    on("zoom-in", () => this.#zoom(ZOOM));
    on("zoom-out", () => this.#zoom(1 / ZOOM));
    on("zoom-whole", () => this.#zoom(Infinity));
    byId<HTMLInputElement>("zoom-place").addEventListener("input", () => this.#move());
    for (const box of document.querySelectorAll("#waterfall-tools input[type=checkbox]")) box.addEventListener("change", () => this.#draw());
    byId("waterfall-tools").hidden = false;
    this.#draw();
    this.#drawBars();
  }

  #toggle(row: HTMLTableRowElement): void {
    if (!this.#folded.delete(row)) this.#folded.add(row);
    this.#draw();
  }

  #fold(rows: HTMLTableRowElement[]): void {
    this.#folded = new Set(rows);
    this.#draw();
  }

  #isUnderFold(row: HTMLTableRowElement): boolean {
    for (let above = this.#parents.get(row); above; above = this.#parents.get(above)) if (this.#folded.has(above)) return true;
    return false;
  }

  #draw(): void {
    const legs = new Set([...document.querySelectorAll<HTMLInputElement>("#waterfall-tools input[name=leg]:checked")].map((box) => box.value));
    const lateOnly = byId<HTMLInputElement>("late-only").checked;
    for (const row of this.#rows) {
      const shown = legs.has(row.dataset["leg"] ?? "") && (!lateOnly || "late" in row.dataset) && (lateOnly || !this.#isUnderFold(row));
      row.hidden = !shown;
      const button = row.querySelector<HTMLButtonElement>("button.fold");
      if (!button) continue;
      const open = !this.#folded.has(row);
      button.setAttribute("aria-expanded", String(open));
      button.textContent = open ? "▾" : "▸";
    }
  }

  #zoom(factor: number): void {
    [this.#from, this.#shown] = zoomed([this.#from, this.#shown], factor);
    this.#drawBars();
  }

  #move(): void {
    this.#from = (Number(byId<HTMLInputElement>("zoom-place").value) / WHOLE) * (WHOLE - this.#shown);
    this.#drawBars();
  }

  #drawBars(): void {
    for (const bar of this.#bars) bar.setAttribute("viewBox", `${this.#from} 0 ${this.#shown} 12`);
    const place = byId<HTMLInputElement>("zoom-place");
    place.disabled = this.#shown >= WHOLE;
    place.value = String(this.#shown >= WHOLE ? 0 : (this.#from / (WHOLE - this.#shown)) * WHOLE);
    const length = Number(this.table.dataset["length"]);
    const at = (n: number): string => `+${formatted((length * (this.#from + (this.#shown * n) / TICKS)) / WHOLE)}`;
    byId("axis").textContent = Array.from({ length: TICKS + 1 }, (_, n) => at(n)).join("  ·  ");
  }
}

const table = document.querySelector<HTMLTableElement>("#waterfall");
if (table) new Waterfall(table);
