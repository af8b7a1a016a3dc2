// Arithmetic of the map: distances on the sphere, discs as polygons.

const RADIUS_M = 6_371_008.8;
const RAD = Math.PI / 180;

export type LonLat = [number, number];

/** Returns the great-circle distance of two points, in m. */
export function distanceM([lonA, latA]: LonLat, [lonB, latB]: LonLat): number {
  const h =
    Math.sin(((latB - latA) * RAD) / 2) ** 2 +
    Math.cos(latA * RAD) * Math.cos(latB * RAD) * Math.sin(((lonB - lonA) * RAD) / 2) ** 2;
  return 2 * RADIUS_M * Math.asin(Math.min(1, Math.sqrt(h)));
}

/** Returns the distance of a point from a line, in m. The line is short enough to be flat. */
export function distanceToLineM(at: LonLat, line: readonly LonLat[]): number {
  const perLon = RADIUS_M * RAD * Math.cos(at[1] * RAD);
  const perLat = RADIUS_M * RAD;
  const flat = line.map(([lon, lat]): [number, number] => [(lon - at[0]) * perLon, (lat - at[1]) * perLat]);
  let best = Infinity;
  for (const [i, [x, y]] of flat.entries()) {
    const [fromX, fromY] = flat[i - 1] ?? [x, y];
    const [dx, dy] = [x - fromX, y - fromY];
    const length = dx * dx + dy * dy;
    const part = length ? Math.min(1, Math.max(0, -(fromX * dx + fromY * dy) / length)) : 0;
    best = Math.min(best, Math.hypot(fromX + part * dx, fromY + part * dy));
  }
  return best;
}

/** Returns a disc as a closed line with 64 corners. */
export function disc([lon, lat]: LonLat, radiusM: number): LonLat[] {
  const dLat = radiusM / RADIUS_M / RAD;
  const dLon = dLat / Math.cos(lat * RAD);
  return Array.from({ length: 65 }, (_, i): LonLat => {
    const angle = (i / 64) * 2 * Math.PI;
    return [lon + dLon * Math.cos(angle), lat + dLat * Math.sin(angle)];
  });
}

/** Returns the index of the last of ascending moments at or before `at`; -1 where there is none. */
export function lastBefore(moments: readonly number[], at: number): number {
  let low = 0;
  let high = moments.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((moments[middle] ?? Infinity) <= at) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Time between two positions beyond which no line joins them, in ms: nobody knows the way between them. */
const LONG_GAP_MS = 180_000;

/** Splits positions, each with its time in ms first, wherever two of them are so far apart in time that no line may join them. */
export function stretches<T extends readonly [number, ...unknown[]]>(positions: readonly T[]): T[][] {
  const found: T[][] = [];
  let last = -Infinity;
  for (const position of positions) {
    const stretch = found.at(-1);
    if (stretch && position[0] - last <= LONG_GAP_MS) stretch.push(position);
    else found.push([position]);
    last = position[0];
  }
  return found;
}

/** Returns the bearing from one point to another, in degrees clockwise from north, 0 to 360. */
export function bearingDeg([lonA, latA]: LonLat, [lonB, latB]: LonLat): number {
  const dLon = (lonB - lonA) * RAD;
  const y = Math.sin(dLon) * Math.cos(latB * RAD);
  const x = Math.cos(latA * RAD) * Math.sin(latB * RAD) - Math.sin(latA * RAD) * Math.cos(latB * RAD) * Math.cos(dLon);
  return (Math.atan2(y, x) / RAD + 360) % 360;
}
