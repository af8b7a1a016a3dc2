// The app of a protected person: its screens, in the language that she chose.

import "./app.css";
import { Afterwards } from "./afterwards";
import { EmergencyBar } from "./bar";
import { faultOf, grouped } from "./code";
import { Following } from "./following";
import { HealthReports } from "./health";
import { InstructionView } from "./instruction";
import { forgetAll, keep, newKey, setting } from "./kept";
import { HerMap } from "./map";
import { PANIC_PRESSES, PANIC_PRESSES_WITHIN_MS, onPresses } from "./presses";
import { NEWS_TAG, subscribe } from "./push";
import { Reporting } from "./reporting";
import { Refused, call, receipt } from "./server";
import { clock } from "./times";

const LANGUAGES = ["ko", "en"];
const RETRY_MS = 3_000;
const DRAW_MS = 1_000;
const SHOW_MS = 5_000;
const SEND_QUIET_MS = 90_000; // six intervals: then she is told that nothing arrives
const AWAY_WORTH_MS = 60_000; // a shorter absence loses at most a few positions

let texts: Record<string, string> = {};
const t = (name: string) => texts[name] ?? name;
const find = <E extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as E;
const receipts = new Set<string>();
let started = false;
let away = { from_ms: 0, until_ms: 0 };

const reporting = new Reporting(show);
const following = new Following(noteAnswer, () => {
  reporting.state.ended = true;
  show();
});
const instruction = new InstructionView(following, t, (id, choice) => void retried(() => receipt(id, "answered", choice)));
const herMap = new HerMap(find("map"), t, () => reporting.place, () => instruction.shown);
const health = new HealthReports();
const afterwards = new Afterwards(find("afterwards"), t);
const bar = new EmergencyBar(t, () => void reporting.panic());

async function begin(): Promise<void> {
  const chosen = (await setting<string>("language")) ?? navigator.language.slice(0, 2);
  await speak(LANGUAGES.includes(chosen) ? chosen : "ko");
  listen();
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("/service-worker.js").catch(() => undefined);
  if (await setting<boolean>("enrolled")) start();
  else screen("enrol");
}

async function speak(language: string): Promise<void> {
  texts = await (await fetch(`/static/${language}.json`)).json();
  document.documentElement.lang = language;
  document.title = t("name");
  for (const element of document.querySelectorAll<HTMLElement>("[data-text]")) element.textContent = t(element.dataset["text"]!);
  for (const element of document.querySelectorAll<HTMLElement>("[data-label]")) element.ariaLabel = t(element.dataset["label"]!);
  find<HTMLSelectElement>("language").value = language;
  await keep("language", language);
  await keep("name", t("name"));
  await keep("push_line", t("push_line"));
  herMap.translate();
  afterwards.draw();
  show();
}

function screen(name: "enrol" | "main" | "ended"): void {
  for (const each of ["enrol", "main", "ended"]) find(each).hidden = each !== name;
  bar.allowPanic(name === "main");
}

function start(): void {
  screen("main");
  started = true;
  reporting.start();
  afterwards.begin();
  void noteAway();
  void following.run();
  void subscribePage().catch(() => undefined);
}

function listen(): void {
  listenToCode();
  find("language").addEventListener("change", (event) => void speak((event.target as HTMLSelectElement).value));
  find("exit").addEventListener("click", leaveScreen);
  addEventListener("keydown", (event) => event.key === "Escape" && leaveScreen());
  find("allow-push").addEventListener("click", () => void askForPush());
  find("enrol-again").addEventListener("click", () => void forgetAll().then(() => location.reload()));
  onPresses(find("title"), PANIC_PRESSES, PANIC_PRESSES_WITHIN_MS, () => {
    if (started && !reporting.state.ended) void reporting.silentPanic(); // nothing on the screen changes
  });
  document.addEventListener("visibilitychange", () => {
    noteReceipts();
    show(); // first, as a locked phone may not run for long
    if (started) void noteAway();
    void forgetNotification();
  });
  setInterval(draw, DRAW_MS);
  setInterval(show, SHOW_MS);
}

// A calendar of the phone's own takes this page's place, so that the way back doesn't lead here. It needs no network, unless the app was
// opened for the first time a moment ago.
function leaveScreen(): void {
  document.body.hidden = true;
  const isKept = navigator.serviceWorker?.controller;
  location.replace(isKept || navigator.onLine ? "/today.html" : "about:blank");
}

// ---- connecting the phone

function listenToCode(): void {
  const code = find<HTMLInputElement>("code");
  find("enrol-form").addEventListener("submit", (event) => {
    event.preventDefault();
    void enrol();
  });
  code.addEventListener("input", (event) => {
    // Not within a syllable, and not where she corrects the middle.
    if ((event as InputEvent).isComposing || code.selectionStart !== code.value.length) return;
    if (!(event as InputEvent).inputType?.startsWith("delete")) code.value = grouped(code.value);
    const fault = faultOf(code.value);
    refuseCode(fault?.text === "code_wrong" ? fault : undefined);
  });
}

function refuseCode(fault: ReturnType<typeof faultOf>): void {
  find("code").setAttribute("aria-invalid", String(fault !== undefined));
  write("enrol-said", fault ? Object.entries(fault.values).reduce((text, [name, value]) => text.replace(`{${name}}`, value), t(fault.text)) : "");
}

async function enrol(): Promise<void> {
  const code = find<HTMLInputElement>("code");
  code.value = grouped(code.value);
  const fault = faultOf(code.value);
  refuseCode(fault);
  if (fault) return;
  try {
    const key = await newKey();
    await call("POST", "/api/enrol", { code: code.value, key });
    await keep("enrolled", true);
    start();
  } catch (error) {
    const name = error instanceof Refused ? `refused_${error.code}` : "refused_away";
    write("enrol-said", t(name in texts ? name : "refused_away"));
  }
}

// ---- the present instruction and the earlier notices

function noteAnswer(isNews: boolean): void {
  draw();
  if (isNews) {
    herMap.wake();
    if ((following.answer?.present ?? following.answer?.earlier[0])?.is_over) afterwards.follow();
  }
  noteReceipts();
  show();
}

// What was confirmed ages, so it is drawn each second.
function draw(): void {
  bar.prepare(reporting.place);
  if (!started || reporting.state.ended) return;
  instruction.draw();
  herMap.draw();
}

// The phone has what it was answered; the instruction is on a screen in use.
function noteReceipts(): void {
  const { answer, knownUntilMs } = following;
  const visible = document.visibilityState === "visible";
  const earlier = (answer?.earlier ?? []).filter((notice) => notice.sent_ms > knownUntilMs);
  for (const { id } of [...(answer?.present ? [answer.present] : []), ...earlier]) {
    const kind = visible && id === instruction.shown?.id ? "displayed" : "delivered";
    if (receipts.has(`${id} ${kind}`) || receipts.has(`${id} displayed`)) continue;
    receipts.add(`${id} ${kind}`);
    void retried(() => receipt(id, kind));
  }
}

async function retried(work: () => Promise<unknown>): Promise<void> {
  for (let tries = 0; tries < 200; tries++) {
    try {
      await work();
      return;
    } catch (error) {
      if (error instanceof Refused && error.status < 429 && error.status !== 408) return;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

// ---- push

function subscribePage(): Promise<void> {
  return subscribe("/api/push", find("push"));
}

async function askForPush(): Promise<void> {
  await Notification.requestPermission();
  await subscribePage().catch(() => write("push-said", t("push_failed")));
}

// On the open app the line has served its purpose.
async function forgetNotification(): Promise<void> {
  if (document.visibilityState !== "visible" || !("serviceWorker" in navigator)) return;
  const shown = (await (await navigator.serviceWorker.getRegistration())?.getNotifications({ tag: NEWS_TAG })) ?? [];
  for (const notification of shown) notification.close();
}

// ---- the state of her own device, in words that can't be taken for a notice about somebody else

function show(): void {
  const { state } = reporting;
  draw();
  if (state.ended) {
    screen("ended");
    return;
  }
  if (!started) return;
  health.note(state.location);
  const located = state.location === "good" || state.location === "vague"; // without a position there is nothing to send
  const quiet = located && state.sent_ms > 0 && Date.now() - state.sent_ms > SEND_QUIET_MS;
  const noticesAway = following.failed || following.reliance === "unconfirmed" || following.answer?.away === true;
  const troubles = [
    state.location === "good" || state.location === "unknown" ? "" : t(`location_${state.location}`),
    !state.connected || quiet ? t("not_sent") : "",
    state.waiting > 1 ? t("waiting").replace("{count}", String(state.waiting)) : "",
    noticesAway ? t("notices_away") : "",
  ].filter(Boolean);
  const low = state.low_pct === null ? [] : [t("battery_low").replace("{percent}", String(state.low_pct))];
  find("health").replaceChildren(...[...troubles, ...low].map((line) => Object.assign(document.createElement("li"), { textContent: line })));
  const good = state.sent_ms > 0 && troubles.length === 0;
  write("state", good ? t("reporting") : state.sent_ms > 0 ? t("reporting_troubled") : t("beginning"));
  find("state").dataset["sent"] = String(state.sent_ms);
  write("panic-said", state.panic ? t(`panic_${state.panic}`) : "");
  const { from_ms, until_ms } = away;
  write("away", until_ms - from_ms < AWAY_WORTH_MS ? "" : t("was_away").replace("{from}", clock(from_ms)).replace("{until}", clock(until_ms)));
}

// A screen reader says what is written once more, so the same text isn't.
function write(id: string, text: string): void {
  if (find(id).textContent !== text) find(id).textContent = text;
}

// While the screen was locked nothing was sent. She is told so when she comes back, and the police at once.
async function noteAway(): Promise<void> {
  if (document.visibilityState !== "visible") await keep("hidden_ms", Date.now());
  else {
    const from_ms = (await setting<number>("hidden_ms")) ?? 0;
    if (from_ms) away = { from_ms, until_ms: Date.now() };
    await keep("hidden_ms", 0);
  }
  show();
}

void begin();
