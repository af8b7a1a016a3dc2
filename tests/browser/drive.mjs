// Drives Chromium for the browser tests: one line of JSON in for each command, one line of JSON out. Each page has its own cookies.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const PATIENCE_MS = 20_000;
const OPENED_WITHIN_MS = 60_000; // a page of a console that starts on a busy machine
const FIX_INTERVAL_MS = 2_000; // the app accepts a position of at most 4 s
const COMMAND_LIMIT_MS = Number(process.env.COMMAND_LIMIT_MS);

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: [
    ...["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"],
    ...["--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader", "--use-angle=swiftshader"],
    "--autoplay-policy=no-user-gesture-required",
    // Hashes of the keys of a test's certificates, which the browser accepts.
    ...(process.env.TRUSTED_KEYS ? [`--ignore-certificate-errors-spki-list=${process.env.TRUSTED_KEYS}`] : []),
  ],
});
const pages = new Map();
const places = new Map(); // where each telephone is, by its context
const fetching = new Map(); // pending fetches of scripts and workers, by page
const origins = new Set();
const faults = [];
const refusals = []; // answers 429 to pages on telephones

async function pageOf(name, language = "en") {
  if (!pages.has(name)) {
    const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, locale: language });
    context.setDefaultTimeout(PATIENCE_MS);
    context.setDefaultNavigationTimeout(OPENED_WITHIN_MS);
    const page = await context.newPage();
    const pending = new Set();
    page.on("request", (request) => {
      origins.add(new URL(request.url()).origin);
      if (request.resourceType() === "fetch") pending.add(request);
    });
    for (const end of ["requestfinished", "requestfailed"]) page.on(end, (request) => pending.delete(request));
    fetching.set(name, pending);
    page.on("pageerror", (error) => faults.push(`${name}: ${error.stack ?? error}`));
    page.on("console", async (message) => {
      if (message.type() !== "error") return;
      const { url, lineNumber, columnNumber } = message.location();
      const where = `on ${page.url()} by ${url}:${lineNumber}:${columnNumber}`;
      const args = message.args().map((arg) => arg.evaluate((value) => value?.stack || String(value)).catch(() => ""));
      faults.push(`${name}: ${message.text()} ${(await Promise.all(args)).join(" ")} ${where}`);
    });
    pages.set(name, page);
  }
  return pages.get(name);
}

// Chromium stamps an emulated position with the moment at which it was set, however often a page reads it. A receiver measures again and
// again: without this, a telephone that stays where it is reports one old position for ever.
function receive(context, at) {
  places.set(context, at);
  const timer = setInterval(() => context.setGeolocation(places.get(context)).catch(() => clearInterval(timer)), FIX_INTERVAL_MS);
  context.on("close", () => clearInterval(timer));
}

// A page that is left during a fetch, such as of map tiles, reports "Failed to fetch", which is no fault of the page.
async function fetchesDone(name) {
  const until = Date.now() + PATIENCE_MS;
  while (fetching.get(name)?.size && Date.now() < until) await new Promise((resolve) => setTimeout(resolve, 20));
}

const commands = {
  open: async ({ page, url, language }) => {
    const opened = await pageOf(page, language);
    await fetchesDone(page);
    return (await opened.goto(url))?.status();
  },
  click: async ({ page, selector }) => (await pageOf(page)).locator(selector).first().click(),
  twice: async ({ page, selector }) => {
    const { x, y, width, height } = await (await pageOf(page)).locator(selector).first().boundingBox();
    for (const _ of [1, 2]) await (await pageOf(page)).mouse.click(x + width / 2, y + height / 2);
  },
  // Clicks a link that opens a window, which is the page `named` from then on.
  popup: async ({ page, selector, named }) => {
    const from = await pageOf(page);
    const [opened] = await Promise.all([from.context().waitForEvent("page"), from.locator(selector).first().click()]);
    opened.on("pageerror", (error) => faults.push(`${named}: ${error.stack ?? error}`));
    pages.set(named, opened);
    await opened.waitForLoadState();
    return opened.url();
  },
  fill: async ({ page, selector, value }) => (await pageOf(page)).locator(selector).fill(value),
  select: async ({ page, selector, value }) => (await pageOf(page)).locator(selector).selectOption(value),
  press: async ({ page, key }) => (await pageOf(page)).keyboard.press(key),
  text: async ({ page, selector }) => (await pageOf(page)).locator(selector).allInnerTexts(),
  // Time at which the element was there, milliseconds since 1970.
  wait: async ({ page, selector }) => {
    const handle = await (await pageOf(page)).waitForFunction(
      (wanted) => document.querySelector(wanted) && Date.now(),
      selector,
      { polling: "raf" },
    );
    return handle.jsonValue();
  },
  // Waits until an expression is true on the page.
  until: async ({ page, condition }) => {
    const waiting = await pageOf(page);
    const until = Date.now() + PATIENCE_MS;
    while (!(await waiting.evaluate(`Boolean(${condition})`))) {
      if (Date.now() > until) throw new Error(`not so within ${PATIENCE_MS / 1000} s on ${waiting.url()}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  },
  eval: async ({ page, expression }) => (await pageOf(page)).evaluate(expression),
  // Colour scheme that the browser's user prefers: light or dark.
  prefer: async ({ page, scheme, language }) => (await pageOf(page, language)).emulateMedia({ colorScheme: scheme }),
  cookies: async ({ page }) => (await pageOf(page)).context().cookies(),
  resize: async ({ page, width, height }) => (await pageOf(page)).setViewportSize({ width, height }),
  // A picture of the page. `hidden` are selectors of elements that aren't compared.
  shot: async ({ page, path, hidden = [] }) => {
    const seen = await pageOf(page);
    await seen.screenshot({ path, animations: "disabled", caret: "hide", mask: hidden.map((selector) => seen.locator(selector)) });
  },
  // Number of pixels of an element whose colour is about the given one.
  colours: async ({ page, selector, like }) => {
    const seen = await pageOf(page);
    const shot = await seen.locator(selector).first().screenshot();
    return seen.evaluate(
      async ([encoded, [red, green, blue]]) => {
        const bytes = Uint8Array.from(atob(encoded), (char) => char.charCodeAt(0));
        const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
        const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
        context.drawImage(image, 0, 0);
        const { data } = context.getImageData(0, 0, image.width, image.height);
        let count = 0;
        for (let i = 0; i < data.length; i += 4) {
          const away = Math.abs(data[i] - red) + Math.abs(data[i + 1] - green) + Math.abs(data[i + 2] - blue);
          if (away < 24) count += 1;
        }
        return count;
      },
      [shot.toString("base64"), like],
    );
  },
  axe: async ({ page }) => {
    const checked = await pageOf(page);
    // Run it through the debugger: the page's policy allows no inline script.
    const session = await checked.context().newCDPSession(checked);
    await session.send("Runtime.evaluate", { expression: AXE });
    const found = await checked.evaluate("axe.run(document, { resultTypes: ['violations'] })");
    return found.violations.map(({ id, impact, nodes }) => ({ id, impact, nodes: nodes.map((node) => node.html) }));
  },
  // Bytes of the page's heap after a garbage collection.
  heap: async ({ page }) => {
    const measured = await pageOf(page);
    const session = await measured.context().newCDPSession(measured);
    await session.send("HeapProfiler.collectGarbage");
    return (await session.send("Runtime.getHeapUsage")).usedSize;
  },
  // A page on a telephone that is at a place, with the rights that the app asks for. The page's clock can be moved forward with `clock`.
  phone: async ({ page, url, language, at, width, height, clock, agent }) => {
    const context = await browser.newContext({
      viewport: { width: width ?? 360, height: height ?? 740 }, isMobile: true, hasTouch: true, locale: language, geolocation: at,
      permissions: at ? ["geolocation", "notifications"] : [], ...(agent ? { userAgent: agent } : {}),
    });
    context.setDefaultTimeout(PATIENCE_MS);
    context.setDefaultNavigationTimeout(OPENED_WITHIN_MS);
    if (at) receive(context, at);
    const opened = await context.newPage();
    opened.on("pageerror", (error) => faults.push(`${page}: ${error.stack ?? error}`));
    opened.on("request", (request) => origins.add(new URL(request.url()).origin));
    opened.on("response", (answer) => answer.status() === 429 && refusals.push(`${page}: ${new URL(answer.url()).pathname}`));
    if (clock) await opened.clock.install();
    pages.set(page, opened);
    return (await opened.goto(url)).status();
  },
  locate: async ({ page, at }) => {
    const context = (await pageOf(page)).context();
    places.set(context, at);
    await context.setGeolocation(at);
  },
  // Moves the clock and the timers of a page forward. The server's clock stays.
  forward: async ({ page, ms }) => (await pageOf(page)).clock.fastForward(ms),
  // Stops a page's clock and timers, or lets them go on.
  stop: async ({ page, stopped }) => {
    const { clock } = await pageOf(page);
    await (stopped ? clock.pauseAt(await (await pageOf(page)).evaluate("Date.now() + 50")) : clock.resume());
  },
  // A network that takes the requests to a path and never answers them.
  hang: async ({ page, path, hang }) => {
    const opened = await pageOf(page);
    await (hang ? opened.route(path, () => {}) : opened.unroute(path));
  },
  back: async ({ page }) => (await (await pageOf(page)).goBack())?.url() ?? "",
  offline: async ({ page, offline }) => (await pageOf(page)).context().setOffline(offline),
  // A push message, as the browser hands it to the service worker.
  push: async ({ page, data }) => {
    const opened = await pageOf(page);
    const session = await opened.context().newCDPSession(opened);
    const registered = new Promise((resolve) => {
      session.on("ServiceWorker.workerRegistrationUpdated", ({ registrations }) => registrations[0] && resolve(registrations[0]));
    });
    await session.send("ServiceWorker.enable");
    const { registrationId } = await registered;
    const { origin } = new URL(opened.url());
    await session.send("ServiceWorker.deliverPushMessage", { origin, registrationId, data });
  },
  seen: async () => ({ origins: [...origins].sort(), faults, refusals }),
};

// Fails a command that doesn't end, such as a script on a page that is never done.
async function limited(command, work) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${command} didn't end within ${COMMAND_LIMIT_MS / 1000} s`)), COMMAND_LIMIT_MS);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...given } = JSON.parse(line);
  try {
    console.log(JSON.stringify({ result: (await limited(command, commands[command](given))) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  }
}
await browser.close();
