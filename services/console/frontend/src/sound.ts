// Sounds of the live page, by severity, and the flashing title.

/** Tones of each sound, in Hz, one after the other. Duress and a race that is being lost repeat a falling pair; a new demand rises. */
const TONES = {
  grave: [1_040, 620, 1_040, 620, 1_040, 620],
  demand: [660, 880, 1_040],
  review: [520, 520],
} as const;
export type Sound = keyof typeof TONES;
const TONE_S = 0.2;
const GAP_S = 0.05;

let audio: AudioContext | undefined;

export function play(sound: Sound): void {
  audio ??= new AudioContext();
  // Browsers allow sound only after a user's gesture on the page; the title and the announcement work without one.
  void audio.resume();
  for (const [i, frequency] of TONES[sound].entries()) {
    const tone = audio.createOscillator();
    const volume = audio.createGain();
    volume.gain.value = sound === "review" ? 0.1 : 0.2;
    tone.type = sound === "grave" ? "square" : "sine";
    tone.frequency.value = frequency;
    tone.connect(volume).connect(audio.destination);
    const at = audio.currentTime + (TONE_S + GAP_S) * i;
    tone.start(at);
    tone.stop(at + TONE_S);
  }
  document.body.dataset["sounded"] = sound;
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
