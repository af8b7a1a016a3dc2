// The app of a protected person: its screens, in the language that she chose.

import "./app.css";
import { Afterwards } from "./afterwards";
import { HealthReports } from "./health";
import { forgetAll, keep, newKey, setting } from "./kept";
import { HerMap } from "./map";
import { subscribe } from "./push";
import { Reporting } from "./reporting";
import { type Notice, type Notices, Refused, call, receipt } from "./server";

const LANGUAGES = ["ko", "en"];
const RETRY_MS = 3_000;
const PRESSES = 5;
const PRESSES_WITHIN_MS = 3_000;
const SEND_QUIET_MS = 90_000; // six intervals: then she is told that nothing arrives
const AWAY_WORTH_MS = 60_000; // a shorter absence loses at most a few positions

let texts: Record<string, string> = {};
const t = (name: string) => texts[name] ?? name;
const find = <E extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as E;
const displayed = new Set<string>();
let digest = "";
let noticesAway = false;
let started = false;
let away = { from_ms: 0, until_ms: 0 };

const reporting = new Reporting(show);
const herMap = new HerMap(find("map"), t, () => reporting.place);
const health = new HealthReports();
const afterwards = new Afterwards(find("afterwards"), t);

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
  find<HTMLSelectElement>("language").value = language;
  await keep("language", language);
  await keep("push_line", t("push_line"));
  herMap.translate();
  afterwards.draw();
  show();
}

function screen(name: "enrol" | "main" | "ended"): void {
  for (const each of ["enrol", "main", "ended"]) find(each).hidden = each !== name;
}

function start(): void {
  screen("main");
  started = true;
  reporting.start();
  afterwards.begin();
  void noteAway();
  void follow();
  void subscribePage().catch(() => undefined);
}

function listen(): void {
  find("enrol-form").addEventListener("submit", (event) => {
    event.preventDefault();
    void enrol();
  });
  find("language").addEventListener("change", (event) => void speak((event.target as HTMLSelectElement).value));
  find("exit").addEventListener("click", leaveScreen);
  addEventListener("keydown", (event) => event.key === "Escape" && leaveScreen());
  find("panic").addEventListener("click", () => (find("panic-sure").hidden = !find("panic-sure").hidden));
  find("panic-no").addEventListener("click", () => (find("panic-sure").hidden = true));
  find("panic-yes").addEventListener("click", () => {
    find("panic-sure").hidden = true;
    void reporting.panic(true);
  });
  find("allow-push").addEventListener("click", () => void askForPush());
  find("enrol-again").addEventListener("click", () => void forgetAll().then(() => location.reload()));
  let presses: number[] = [];
  find("title").addEventListener("click", () => {
    presses = [...presses.filter((at) => at > Date.now() - PRESSES_WITHIN_MS), Date.now()];
    if (presses.length < PRESSES) return;
    presses = [];
    void reporting.panic(false); // nothing on the screen changes
  });
  document.addEventListener("visibilitychange", () => {
    void noteDisplayed();
    show(); // first, as a locked phone may not run for long
    if (started) void noteAway();
  });
  setInterval(show, 5_000);
}

// Another page takes this one's place, so that the way back doesn't lead here.
function leaveScreen(): void {
  document.body.hidden = true;
  location.replace(t("exit_address"));
}

async function enrol(): Promise<void> {
  const said = find("enrol-said");
  said.textContent = "";
  try {
    const key = await newKey();
    await call("POST", "/api/enrol", { code: find<HTMLInputElement>("code").value, key });
    await keep("enrolled", true);
    start();
  } catch (error) {
    said.textContent = t(error instanceof Refused ? `refused_${error.code}` : "refused_away");
    if (said.textContent.startsWith("refused_")) said.textContent = t("refused_away");
  }
}

// ---- notices

async function follow(): Promise<void> {
  for (;;) {
    try {
      const answer = await call<Notices>("GET", `/api/notices?wait=1&known=${digest}`);
      noticesAway = answer.away;
      if (answer.digest !== digest) {
        digest = answer.digest;
        list(answer.notices);
        herMap.wake();
        if (answer.notices[0]?.is_over) afterwards.follow();
        await noteDisplayed();
      }
      show();
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        reporting.state.ended = true;
        show();
        return;
      }
      noticesAway = true;
      show();
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

function list(notices: Notice[]): void {
  const shown = notices.filter((notice) => notice.expires_ms > 0).map((notice, index) => item(notice, index === 0));
  find("notices").replaceChildren(...shown);
  find("no-notice").hidden = shown.length > 0;
}

function item(notice: Notice, newest: boolean): HTMLElement {
  const element = document.createElement("li");
  element.className = newest ? "newest" : "earlier";
  element.dataset["notice"] = notice.id;
  const text = document.createElement("p");
  text.textContent = notice.text;
  text.lang = notice.language;
  const time = document.createElement("time");
  const sent = new Date(notice.sent_ms);
  time.dateTime = sent.toISOString();
  time.textContent = clock(notice.sent_ms);
  element.append(time, text);
  if (newest && !notice.is_over) element.append(answers(notice.id));
  return element;
}

// Three answers, alike in size and colour. The same happens after each, at once, and nothing remembers which it was.
function answers(noticeId: string): HTMLElement {
  const group = document.createElement("div");
  group.className = "answers";
  for (const choice of [1, 2, 3]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = t(`answer_${choice}`);
    button.addEventListener("click", () => {
      group.replaceChildren(t("answered"));
      void retried(() => receipt(noticeId, "answered", choice));
    });
    group.append(button);
  }
  return group;
}

async function noteDisplayed(): Promise<void> {
  const kind = document.visibilityState === "visible" ? "displayed" : "delivered";
  for (const element of document.querySelectorAll<HTMLElement>("#notices li")) {
    const id = element.dataset["notice"]!;
    if (displayed.has(`${id} ${kind}`)) continue;
    displayed.add(`${id} ${kind}`);
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
  await subscribePage().catch(() => (find("push-said").textContent = t("push_failed")));
}

// ---- the state of her own device, in words that can't be taken for a notice about somebody else

function show(): void {
  const { state } = reporting;
  if (state.ended) screen("ended");
  else if (started) health.note(state.location);
  const located = state.location === "good" || state.location === "vague"; // without a position there is nothing to send
  const quiet = located && state.sent_ms > 0 && Date.now() - state.sent_ms > SEND_QUIET_MS;
  const troubles = [
    state.location === "good" || state.location === "unknown" ? "" : t(`location_${state.location}`),
    !state.connected || quiet ? t("not_sent") : "",
    state.waiting > 1 ? t("waiting").replace("{count}", String(state.waiting)) : "",
    noticesAway ? t("notices_away") : "",
  ].filter(Boolean);
  const low = state.low_pct === null ? [] : [t("battery_low").replace("{percent}", String(state.low_pct))];
  find("health").replaceChildren(
    ...[...troubles, ...low].map((line) => {
      const element = document.createElement("li");
      element.textContent = line;
      return element;
    }),
  );
  const good = state.sent_ms > 0 && troubles.length === 0;
  find("state").textContent = good ? t("reporting") : state.sent_ms > 0 ? t("reporting_troubled") : t("beginning");
  find("state").dataset["sent"] = String(state.sent_ms);
  find("panic-said").textContent = state.panic ? t(`panic_${state.panic}`) : "";
  const { from_ms, until_ms } = away;
  find("away").textContent = until_ms - from_ms < AWAY_WORTH_MS ? "" : t("was_away").replace("{from}", clock(from_ms)).replace("{until}", clock(until_ms));
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

function clock(ms: number): string {
  return new Date(ms).toLocaleTimeString(document.documentElement.lang, { hour: "2-digit", minute: "2-digit" });
}

void begin();
