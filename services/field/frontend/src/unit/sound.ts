// A sound and a vibration while an offer waits for an answer, and another one for a call for help. Browsers allow sound after the first
// touch of the page.

const INTERVAL_MS = 2_500;
type Tones = readonly (readonly [delayS: number, frequencyHz: number])[];
const OFFER: Tones = [[0, 880], [0.25, 660], [0.5, 880]];
/** She called for help: tones that climb four times, as at the desk. */
const PANIC: Tones = [0, 0.6, 1.2, 1.8].flatMap((s) => [[s, 500], [s + 0.17, 800], [s + 0.34, 1_300]] as const);
let context: AudioContext | undefined;
let timer = 0;

export function allowSound(): void {
  context ??= new AudioContext();
  void context.resume();
}

export function ring(isOn: boolean): void {
  document.documentElement.dataset["ringing"] = String(isOn);
  if (!isOn) {
    clearInterval(timer);
    timer = 0;
  } else if (!timer) {
    sound(OFFER, [300, 150, 300]);
    timer = setInterval(() => sound(OFFER, [300, 150, 300]), INTERVAL_MS);
  }
}

/** Sounds once that a protected person called for help. */
export function callForHelp(): void {
  document.documentElement.dataset["called"] = String(Number(document.documentElement.dataset["called"] ?? 0) + 1);
  sound(PANIC, [600, 100, 600, 100, 600]);
}

function sound(tones: Tones, vibration: number[]): void {
  navigator.vibrate?.(vibration);
  if (!context || context.state !== "running") return;
  for (const [delay, frequency] of tones) {
    const tone = context.createOscillator();
    const volume = context.createGain();
    volume.gain.value = 0.35;
    tone.frequency.value = frequency;
    tone.connect(volume).connect(context.destination);
    tone.start(context.currentTime + delay);
    tone.stop(context.currentTime + delay + 0.2);
  }
}
