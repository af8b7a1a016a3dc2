// Pace of a map's frames. A computer without a graphics processor draws a frame for a tenth of a second, and a movement asks for some
// twenty of them: one for each tile that comes. So the changes of a quarter of a second are drawn in one frame, and none while the page
// paints what is more urgent. After a frame the map rests for twice as long as it was drawn: else the browser's graphics process, which
// paints list and card, too, would do nothing else on a busy machine. A map that the user moves follows at once.

import type { Map as MapLibre } from "maplibre-gl";

const FRAME_INTERVAL_MS = 250;
/** Rest after a frame, as a multiple of the time for which it was drawn; and its maximum in ms. */
const REST = 2;
const MAX_REST_MS = 1_500;
/** Interval in which the map looks whether a frame is drawn, in ms. */
const LOOK_MS = 20;
/** Time after a gesture of the user for which the map follows at once, in ms. */
const USED_MS = 1_000;
const GESTURES = ["pointerdown", "pointermove", "touchmove", "wheel", "keydown"];

export class Pace {
  #draw: () => void;
  /** Time before which no frame is drawn, unless the user moves the map. */
  #nextFrameMs = -Infinity;
  #usedAtMs = -Infinity;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Number of paintings that the map waits for. */
  #waits = 0;
  #isAsked = false;

  constructor(private readonly map: MapLibre) {
    this.#draw = map.triggerRepaint.bind(map);
    // All changes ask for their frame by this public method.
    map.triggerRepaint = () => this.#ask();
    map.on("render", () => void this.#rendered());
    const use = (event: Event): void => {
      // A pointer that only passes over the map moves nothing.
      if (event.type === "pointermove" && !(event as PointerEvent).buttons) return;
      this.#usedAtMs = performance.now();
      if (this.#isAsked) this.#ask();
    };
    for (const gesture of GESTURES) map.getContainer().addEventListener(gesture, use, { capture: true, passive: true });
  }

  /** Draws no frame before a painting of the page is done. */
  waitFor(painting: Promise<void>): void {
    this.#waits += 1;
    void painting.then(() => {
      this.#waits -= 1;
      if (this.#isAsked) this.#ask();
    });
  }

  /** Sets the time of the next frame, once this one is drawn. */
  async #rendered(): Promise<void> {
    const beganMs = performance.now();
    this.#nextFrameMs = Infinity;
    await drawn(this.map);
    const nowMs = performance.now();
    const restMs = Math.min(MAX_REST_MS, REST * (nowMs - beganMs));
    this.#nextFrameMs = Math.max(beganMs + FRAME_INTERVAL_MS, nowMs + restMs);
    if (this.#isAsked) this.#ask();
  }

  #ask(): void {
    this.#isAsked = true;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#waits) return;
    const now = performance.now();
    const isUsed = this.map.isMoving() || now < this.#usedAtMs + USED_MS;
    const leftMs = isUsed ? 0 : this.#nextFrameMs - now;
    if (leftMs > 0) {
      if (leftMs < Infinity) this.#timer = setTimeout(() => this.#ask(), leftMs);
    } else {
      this.#isAsked = false;
      this.#draw();
    }
  }
}

/** Resolves once the browser has drawn what the map asked for: its graphics process draws after the map's own work is done. */
async function drawn(map: MapLibre): Promise<void> {
  const gl = map.getCanvas().getContext("webgl2");
  const fence = gl?.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
  if (!gl || !fence) return;
  do await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  while (!gl.isContextLost() && gl.getSyncParameter(fence, gl.SYNC_STATUS) !== gl.SIGNALED);
  gl.deleteSync(fence);
}
