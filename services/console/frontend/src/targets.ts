// Targets of open incidents by their ids, and by incident: with 20,000 of them, no message can afford to look at each.

import type { Sort } from "./rows";

export interface Target {
  /** The incident's id, a slash, and the subject's. */
  id: string;
  sort: Sort;
  unknown: boolean;
  /** Time of the fix in ms; null for a place. */
  fix: number | null;
  /** Longitude, latitude, accuracy in metres. */
  at: [number, number, number] | null;
}

/** Returns the incident of a target. */
export function incidentOf(target: string): string {
  return target.slice(0, target.indexOf("/"));
}

/** Returns the person, place or wearer that a target is: a place's id has a slash of its own. */
export function subjectOf(target: string): string {
  return target.slice(target.indexOf("/") + 1);
}

/** Age from which on a position is unknown, in ms. */
const KNOWN_FOR_MS = 180_000;

export class Targets {
  #byIncident = new Map<string, Map<string, Target>>();
  #size = 0;

  get size(): number {
    return this.#size;
  }

  get(id: string): Target | undefined {
    return this.#byIncident.get(incidentOf(id))?.get(id);
  }

  /** Targets of an incident. */
  of(incident: string): Target[] {
    return [...(this.#byIncident.get(incident)?.values() ?? [])];
  }

  put(target: Target): void {
    const incident = incidentOf(target.id);
    const known = this.#byIncident.get(incident) ?? new Map<string, Target>();
    this.#byIncident.set(incident, known);
    this.#size += Number(!known.has(target.id));
    known.set(target.id, target);
  }

  /** Marks positions that have become too old as unknown, also while no message comes that says so. Returns the ids of their targets. */
  expire(nowMs: number): string[] {
    const expired: string[] = [];
    for (const known of this.#byIncident.values()) {
      for (const target of known.values()) {
        if (target.unknown || target.fix === null || nowMs - target.fix <= KNOWN_FOR_MS) continue;
        target.unknown = true;
        expired.push(target.id);
      }
    }
    return expired;
  }

  /** Forgets a target. Returns whether it was known. */
  delete(id: string): boolean {
    const incident = incidentOf(id);
    const known = this.#byIncident.get(incident);
    if (!known?.delete(id)) return false;
    this.#size -= 1;
    if (!known.size) this.#byIncident.delete(incident);
    return true;
  }

  /** Forgets all targets, and returns their ids. */
  clear(): string[] {
    const ids = [...this.#byIncident.values()].flatMap((known) => [...known.keys()]);
    this.#byIncident.clear();
    this.#size = 0;
    return ids;
  }
}
