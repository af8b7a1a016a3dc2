// Times of day, as her app writes them.

const CLOCK: Intl.DateTimeFormatOptions = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };

/** A time of day, such as 22:14. */
export const clock = (ms: number): string => new Date(ms).toLocaleTimeString(document.documentElement.lang, CLOCK);

/** A time of day, with its date unless it is today's. */
export function at(ms: number): string {
  const time = new Date(ms);
  const date: Intl.DateTimeFormatOptions = time.toDateString() === new Date().toDateString() ? {} : { month: "short", day: "numeric" };
  return time.toLocaleString(document.documentElement.lang, { ...date, ...CLOCK });
}
