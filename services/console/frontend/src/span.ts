// Start and end of a replay. Moments are milliseconds of mesh time.

/** Time shown before the first alert and after the last event, in ms. */
export const AROUND_MS = 120_000;

/**
 * Returns start and end of a replay. It starts two minutes before the first alert, or at the first position where that is later, and
 * ends two minutes after the last alert or step of any leg. Positions don't end it: a response continues without them.
 */
export function span(positions: readonly number[], alerts: readonly number[], steps: readonly number[]): [number, number] {
  const events = [...alerts, ...steps];
  if (!events.length) return [0, 1];
  const begins = Math.min(...(alerts.length ? alerts : events)) - AROUND_MS;
  const first = positions.length ? Math.max(Math.min(...positions, ...events), begins) : begins;
  return [first, Math.max(...events) + AROUND_MS];
}
