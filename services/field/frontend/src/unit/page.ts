// The page of a unit on the road: signs in by a link, reports where it is, and shows its offers and assignments.

import "./page.css";
import { forgetAll, keep, newKey, setting } from "../kept";
import { subscribe } from "../push";
import { Refused, call } from "../server";
import { ACCEPTED, ASKED, card, isCalling } from "./cards";
import { type Answer, Answers, type Duty } from "./duty";
import { Position } from "./position";
import { allowSound, callForHelp, ring } from "./sound";
import { Targets } from "./target";
import { chosenLanguage, clock, has, made, speak, t } from "./texts";

const RETRY_MS = 3_000;
const REDRAW_MS = 1_000;
const find = <E extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as E;

/** What became of the officer's call for help, in words; empty without one. */
let distressWords = "";
let distressIsOn = false;
let duty: Duty | undefined;
let away = false;
let ended = false;
let aheadMs = 0;
/** Time of the newest call for help that was sounded, by incident: each further call sounds once more. */
const sounded = new Map<string, number>();

const position = new Position(show, end);
const targets = new Targets(show);
const answers = new Answers(refuse, show);

async function begin(): Promise<void> {
  await speak(await chosenLanguage());
  listen();
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("/unit/service-worker.js", { scope: "/unit/" }).catch(() => undefined);
  const code = location.hash.slice(1);
  history.replaceState(null, "", location.pathname); // a link in the history would be a second copy of it
  if (code) offerSignIn(code);
  else if (await setting<boolean>("signed_in")) start();
  else screen("sign-in");
}

function screen(name: "sign-in" | "duty" | "ended"): void {
  for (const each of ["sign-in", "duty", "ended"]) find(each).hidden = each !== name;
  find("distress-bar").hidden = name !== "duty";
}

// Programs that preview links open them too, so the link is used only when somebody presses the button.
function offerSignIn(code: string): void {
  screen("sign-in");
  find("sign-in-help").textContent = t("sign_in_ready");
  find("sign-in-now").hidden = false;
  find("sign-in-now").onclick = () => void signIn(code);
}

async function signIn(code: string): Promise<void> {
  allowSound();
  const said = find("sign-in-said");
  said.textContent = "";
  try {
    const language = await setting<string>("language");
    await forgetAll(); // answers and keys of an earlier shift
    await keep("language", language);
    await keep("push_line", t("push_line"));
    await call("POST", "/api/unit/sign-in", { code, key: await newKey() });
    await keep("signed_in", true);
    find("sign-in-now").hidden = true;
    start();
  } catch (error) {
    said.textContent = t(error instanceof Refused && error.status < 500 ? `refused_${error.code}` : "refused_away");
    if (said.textContent.startsWith("refused_")) said.textContent = t("refused_away");
  }
}

function start(): void {
  screen("duty");
  void answers.begin();
  void follow();
  void subscribePage().catch(() => undefined);
  setInterval(show, REDRAW_MS);
}

async function follow(): Promise<void> {
  while (!ended) {
    try {
      const shown = (duty?.tasks ?? []).map((task) => task.assignment).join(",");
      const next = await call<Duty>("GET", `/api/unit/duty?wait=1&known=${duty?.digest ?? ""}&shown=${shown}`);
      away = next.away;
      note(next);
    } catch (error) {
      if (error instanceof Refused && error.status === 401) return end(error.code);
      away = true;
      show();
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

function note(next: Duty): void {
  for (const gone of next.ends) find("said").textContent = t(`end_${gone.reason}`);
  aheadMs = next.now_ms - Date.now();
  if (!duty) position.start(next.status === "busy" ? "busy" : "available");
  duty = next;
  for (const task of next.tasks) {
    // The desk's machine confirms an offer by itself; here the page that shows it does.
    if (ASKED.includes(task.state)) void answers.give({ assignment: task.assignment, offer: task.offer, answer: "received" });
  }
  for (const task of next.tasks) {
    if (!isCalling(task) || task.is_exercise || task.panic_ms! <= (sounded.get(task.incident) ?? 0)) continue;
    sounded.set(task.incident, task.panic_ms!);
    callForHelp();
  }
  const accepted = next.tasks.filter((task) => ACCEPTED.includes(task.state));
  position.hasTask = accepted.length > 0;
  targets.follow(accepted[0]?.incident ?? "");
  show();
}

function refuse(code: string, answer: Answer): void {
  if (["ended", "shift_over", "unit_removed", "not_signed_in"].includes(code)) return end(code);
  if (answer.answer === "received") return;
  // A refused answer of a unit that isn't asked any more says who has it, as the end of a card does.
  const known = [`no_${code}`, `end_${code}`].find(has);
  find("said").textContent = t(known ?? "no_not_now");
}

function end(code: string): void {
  if (ended) return;
  ended = true;
  position.stop();
  targets.follow("");
  ring(false);
  void forgetAll();
  screen("ended");
  find("ended-why").textContent = t(`ended_${code}`);
  if (find("ended-why").textContent === `ended_${code}`) find("ended-why").textContent = t("ended_ended");
}

// ---- drawing

function show(): void {
  if (!duty || ended) return;
  drawHealth();
  drawTasks(duty);
  find("shift-said").textContent = t("shift_said", { unit: duty.unit, leg: t(`leg_${duty.leg}`), until: clock(duty.shift_until_ms) });
  for (const each of document.querySelectorAll<HTMLElement>("[data-status]")) each.ariaPressed = String(each.dataset["status"] === position.status);
  drawDistress(duty);
}

/** Since when help has been called for, and who knows of it, until the desk ends the call. */
function drawDistress(now: Duty): void {
  if (now.distress_ms === null && distressIsOn) distressWords = "";
  distressIsOn = now.distress_ms !== null;
  const since = now.distress_ms === null ? "" : t("distress_on", { at: clock(now.distress_ms) });
  find("distress-said").textContent = `${since} ${distressWords}`.trim();
  find("distress").hidden = distressIsOn || !find("distress-sure").hidden;
}

function drawTasks(now: Duty): void {
  const waiting = (assignment: string) => answers.waiting.some((each) => each.assignment === assignment && each.answer !== "received");
  ring(now.tasks.some((task) => ASKED.includes(task.state) && !waiting(task.assignment)));
  find("no-task").hidden = now.tasks.length > 0;
  const first = now.tasks[0]?.incident;
  const give = (answer: Answer) => {
    find("said").textContent = "";
    void answers.give(answer);
  };
  const cards = now.tasks.map((task) => {
    const places = task.incident === first ? [...targets.found.values()] : [];
    return card(task, { own: position.point, targets: places, waiting: answers.waiting, ahead_ms: aheadMs }, give, redraw);
  });
  patch(find("tasks"), cards);
}

// A button that is replaced under a thumb takes no press, so only the parts that changed are replaced.
function patch(list: HTMLElement, cards: HTMLElement[]): void {
  const present = [...list.children] as HTMLElement[];
  const same = present.length === cards.length && cards.every((next, n) => next.dataset["assignment"] === present[n]!.dataset["assignment"]);
  if (!same) return list.replaceChildren(...cards);
  cards.forEach((next, n) => {
    const old = present[n]!;
    if (old.className !== next.className || old.dataset["state"] !== next.dataset["state"]) return old.replaceWith(next);
    const parts = [...next.children];
    while (old.children.length > parts.length) old.lastElementChild!.remove();
    parts.forEach((part, m) => {
      const before = old.children[m];
      if (!before) old.append(part);
      else if (before.outerHTML !== part.outerHTML) before.replaceWith(part);
    });
  });
}

function redraw(): void {
  find("tasks").replaceChildren();
  show();
}

function drawHealth(): void {
  const lines = [
    position.location === "denied" || position.location === "unavailable" ? t(`location_${position.location}`) : "",
    !position.connected || position.isQuiet || away ? t("not_connected") : "",
    answers.waiting.length ? t("answers_waiting", { n: answers.waiting.length }) : "",
  ].filter(Boolean);
  const list = find("health");
  if ([...list.children].map((each) => each.textContent).join() !== lines.join()) list.replaceChildren(...lines.map((line) => made("li", line)));
  find("position").textContent = position.point && !lines.length ? t("position_sent") : "";
  find("position").dataset["sent"] = String(position.sent_ms);
  const calls = find("calls");
  const wanted = Object.entries({ ...duty?.calls, emergency: "119" });
  if (calls.childElementCount !== wanted.length || calls.lang !== document.documentElement.lang) {
    calls.lang = document.documentElement.lang;
    calls.replaceChildren(
      ...wanted.map(([whose, number]) => {
        const link = made("a", `${t(`call_${whose}`)} ${number}`, "call") as HTMLAnchorElement;
        link.href = `tel:${number}`;
        return link;
      }),
    );
  }
}

// ---- shift, distress, push

function listen(): void {
  find("language").addEventListener("change", (event) => void speak((event.target as HTMLSelectElement).value).then(redraw));
  document.addEventListener("pointerdown", allowSound);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && !ended && duty && void position.report());
  for (const each of document.querySelectorAll<HTMLElement>("[data-status]"))
    each.addEventListener("click", () => {
      position.status = each.dataset["status"]!;
      void position.report();
    });
  find("shift-end").addEventListener("click", () => (find("shift-sure").hidden = !find("shift-sure").hidden));
  find("shift-no").addEventListener("click", () => (find("shift-sure").hidden = true));
  find("shift-yes").addEventListener("click", () => void endShift());
  find("distress").addEventListener("click", () => {
    find("distress-sure").hidden = false;
    find("distress").hidden = true;
  });
  find("distress-no").addEventListener("click", () => {
    find("distress-sure").hidden = true;
    show();
  });
  find("distress-yes").addEventListener("click", () => void raiseDistress());
  find("allow-push").addEventListener("click", () => void askForPush());
}

async function endShift(): Promise<void> {
  try {
    position.status = "off";
    await call("POST", "/api/unit/report", { status: "off" });
    await call("POST", "/api/unit/leave", {});
    end("off");
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return end(error.code);
    find("said").textContent = t("no_away");
  }
}

async function raiseDistress(): Promise<void> {
  const say = (words: string): void => {
    distressWords = words;
    if (duty) drawDistress(duty);
  };
  find("distress-sure").hidden = true;
  say(t("distress_sending"));
  for (;;) {
    try {
      void position.report();
      const raised = await call<{ other_desk: boolean }>("POST", "/api/unit/distress", {});
      if (duty) duty.distress_ms = Date.now() + aheadMs;
      return say(t(raised.other_desk ? "distress_both" : "distress_own"));
    } catch (error) {
      if (error instanceof Refused && error.status === 401) return end(error.code);
      say(t("distress_not_sent"));
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

function subscribePage(): Promise<void> {
  return subscribe("/api/unit/push", find("push"));
}

async function askForPush(): Promise<void> {
  await Notification.requestPermission();
  await subscribePage().catch(() => (find("push-said").textContent = t("push_failed")));
}

void begin();
