// From when until when a replay lasts. Moments are milliseconds of mesh time.

/** Shown before the first alert and after the last event. */
export const AROUND_MS = 120_000;

/**
 * From two minutes before the first alert, or from the first position where that is later, until two minutes after the last alert or
 * step of any leg. Positions don't end it: a response goes on when no position is known any more.
 */
export function span(positions: readonly number[], alerts: readonly number[], steps: readonly number[]): [number, number] {
  const events = [...alerts, ...steps];
  if (!events.length) return [0, 1];
  const begins = Math.min(...(alerts.length ? alerts : events)) - AROUND_MS;
  const first = positions.length ? Math.max(Math.min(...positions, ...events), begins) : begins;
  return [first, Math.max(...events) + AROUND_MS];
}
