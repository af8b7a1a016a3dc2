// Presses on one thing, several within a short time: the silent panic, and the way back from the calendar.

/** Calls `act` at each `count`th press within a time. The press leaves no mark: no focus, no chosen text. */
export function onPresses(element: HTMLElement, count: number, withinMs: number, act: () => void): void {
  let presses: number[] = [];
  element.addEventListener("mousedown", (event) => event.preventDefault());
  element.addEventListener("click", () => {
    presses = [...presses.filter((atMs) => atMs > performance.now() - withinMs), performance.now()];
    if (presses.length < count) return;
    presses = [];
    act();
  });
}

export const PANIC_PRESSES = 5;
export const PANIC_PRESSES_WITHIN_MS = 3_000;
