// Data that the server puts into the page, and small helpers for the DOM.

export interface Page {
  csrf: string;
  role: string;
  /** Leg whose offers the user answers; empty for users who answer none. */
  leg?: string;
  texts: Record<string, string>;
  /** Address of the base map, a PMTiles file. */
  tiles: string;
  /** Address of a street map; empty or absent for none. */
  streets?: string;
  /** Whom the street map's licence wants to be named; empty or absent where its file says so. */
  streetsAttribution?: string;
  /** Name of the user; absent on pages that don't need it. */
  name?: string;
  language: string;
}

export function readPage<T extends Page>(): T {
  return JSON.parse(byId("page").textContent ?? "") as T;
}

export function byId<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

/** Makes an element with attributes and children. Text is never parsed as markup. */
export function make<K extends keyof HTMLElementTagNameMap>(
  name: K,
  attributes: Record<string, string> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Resolves once the present changes of the page are painted; at once where nobody sees it. */
export function painted(): Promise<void> {
  // A frame's callbacks run before it is painted, and a task after them once it was.
  return document.hidden ? Promise.resolve() : new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
}

const clock = new Intl.DateTimeFormat("en-GB", { timeZone: "Asia/Seoul", timeStyle: "medium" });

/** Formats the time of day in Korea, to the second. */
export function timeOfDay(ms: number): string {
  return clock.format(ms);
}
