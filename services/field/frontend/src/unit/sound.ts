// A sound and a vibration while an offer waits for an answer. Browsers allow sound after the first touch of the page.

const INTERVAL_MS = 2_500;
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
    sound();
    timer = setInterval(sound, INTERVAL_MS);
  }
}

function sound(): void {
  navigator.vibrate?.([300, 150, 300]);
  if (!context || context.state !== "running") return;
  for (const [delay, frequency] of [[0, 880], [0.25, 660], [0.5, 880]] as const) {
    const tone = context.createOscillator();
    const volume = context.createGain();
    volume.gain.value = 0.35;
    tone.frequency.value = frequency;
    tone.connect(volume).connect(context.destination);
    tone.start(context.currentTime + delay);
    tone.stop(context.currentTime + delay + 0.2);
  }
}
