// Sounds by severity, whether they are on, and the flashing title.

import { byId } from "./page";

/** Tones of each sound, in Hz, one after the other. A panic call climbs four times; duress and a race that is being lost repeat a falling
 * pair; a new demand rises once. */
const TONES = {
  panic: [500, 800, 1_300, 500, 800, 1_300, 500, 800, 1_300, 500, 800, 1_300],
  grave: [1_040, 620, 1_040, 620, 1_040, 620],
  demand: [660, 880, 1_040],
  review: [520, 520],
} as const;
export type Sound = keyof typeof TONES;
const TONE_S: Record<Sound, number> = { panic: 0.12, grave: 0.2, demand: 0.2, review: 0.2 };
const GAP_S = 0.05;
/** Key under which a window keeps that its sounds are off: on each of its pages, and in no other window. */
const OFF = "tandem-sound-off";

let audio: AudioContext | undefined;

export function play(sound: Sound): void {
  audio ??= new AudioContext();
  // Browsers allow sound only after a user's gesture on the page; the title and the announcement work without one.
  void audio.resume();
  for (const [i, frequency] of TONES[sound].entries()) {
    const tone = audio.createOscillator();
    const volume = audio.createGain();
    volume.gain.value = sound === "review" ? 0.1 : 0.2;
    tone.type = sound === "grave" || sound === "panic" ? "square" : "sine";
    tone.frequency.value = frequency;
    tone.connect(volume).connect(audio.destination);
    const at = audio.currentTime + (TONE_S[sound] + GAP_S) * i;
    tone.start(at);
    tone.stop(at + TONE_S[sound]);
  }
  document.body.dataset["sounded"] = sound;
}

/** Whether sounds are on: the page's box says it. */
export function isSoundOn(): boolean {
  return byId<HTMLInputElement>("sound").checked;
}

/** Sets the page's box as it was on the last page of the window, and keeps what the user chooses. */
export function keepSoundBox(): void {
  const box = byId<HTMLInputElement>("sound");
  box.checked = sessionStorage.getItem(OFF) === null;
  box.addEventListener("change", () => (box.checked ? sessionStorage.removeItem(OFF) : sessionStorage.setItem(OFF, "yes")));
}

const title = document.title;
let flashing: ReturnType<typeof setInterval> | undefined;

/** Flashes a text in the window's title until the page is touched. */
export function flash(what: string): void {
  clearInterval(flashing);
  let on = false;
  flashing = setInterval(() => {
    on = !on;
    document.title = on ? `● ${what}` : title;
  }, 700);
}

for (const event of ["pointerdown", "keydown"]) {
  document.addEventListener(event, () => {
    clearInterval(flashing);
    document.title = title;
  });
}
