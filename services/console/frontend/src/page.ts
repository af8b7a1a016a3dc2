// What the server has put into the page, and small helpers of the DOM.

export interface Page {
  csrf: string;
  role: string;
  /** The leg whose offers the user answers; empty for those who answer none. */
  leg?: string;
  texts: Record<string, string>;
  /** Address of the base map, a PMTiles file. */
  tiles: string;
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

/** An element with attributes and children; text is never read as markup. */
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

const clock = new Intl.DateTimeFormat("en-GB", { timeZone: "Asia/Seoul", timeStyle: "medium" });

/** The time of day in Korea, to the second. */
export function timeOfDay(ms: number): string {
  return clock.format(ms);
}
