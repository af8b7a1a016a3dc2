// The way out by road, where the operator has a router. A way that leads nearer to the region than she is now is never shown.

import { type Circle, type Place, distanceToEdge, offset } from "./geo";
import { call } from "./server";

const RENEWED_MS = 60_000;
const MOVED_M = 50;
const TOLERANCE_M = 30; // a way begins with the nearest street

export class WayOut {
  private way: Place[] = [];
  private from: Place | undefined;
  private direction = "";
  private askedMs = 0;

  // Asks for a way from her place in a direction, unless there is one from nearly the same place.
  async renew(place: Place | undefined, direction: string): Promise<void> {
    const moved = place && this.from ? Math.hypot(...offset(this.from, place)) : Infinity;
    if (direction === this.direction && moved < MOVED_M && Date.now() - this.askedMs < RENEWED_MS) return;
    this.direction = direction;
    this.from = place;
    this.askedMs = Date.now();
    this.way = [];
    if (!place || !direction) return;
    const answer = await call<{ way: Place[] }>("POST", "/api/way-out", { lat: place.lat, lon: place.lon, direction }).catch(() => undefined);
    if (this.direction === direction) this.way = answer?.way ?? [];
  }

  // The way from her place, empty if there is none that keeps away from the circles.
  shown(place: Place, circles: Circle[]): Place[] {
    const least = distanceToEdge(place, circles) - TOLERANCE_M;
    return this.way.every((point) => distanceToEdge(point, circles) >= least) ? this.way : [];
  }
}
