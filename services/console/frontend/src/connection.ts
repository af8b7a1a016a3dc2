// The live page's stream of server-sent events, and what the page says about it.

import { byId } from "./page";
import type { Words } from "./words";

/** Time without a message after which the connection counts as lost, in ms. */
const SILENT_MS = 12_000;
const RECONNECT_MS = 3_000;

/** What each message says about the stream itself. */
export interface Beat {
  /** Time by the mesh's clock, in ms since 1970 UTC. */
  now: number;
  /** Speed of the mesh's clock: 1 but in a replay. */
  rate: number;
  /** Sources that the console can't read, each with the reason. */
  away: Record<string, string>;
}

export class Connection<Message extends Beat> {
  #shown = byId("connection");
  #heardMs = 0;
  #isOpen = false;
  #beat: Beat = { now: 0, rate: 1, away: {} };

  constructor(
    private readonly words: Words,
    private readonly receive: (message: Message) => void,
  ) {}

  /** Time by the mesh's clock, in ms since 1970 UTC; this computer's before the first message. */
  readonly now = (): number => (this.#heardMs ? this.#beat.now + (Date.now() - this.#heardMs) * this.#beat.rate : Date.now());

  /** Whether a message has come since the page was opened. */
  get hasHeard(): boolean {
    return this.#heardMs > 0;
  }

  open(): void {
    const source = new EventSource("/stream");
    source.onopen = () => {
      this.#isOpen = true;
    };
    source.onmessage = (event: MessageEvent<string>) => {
      const message = JSON.parse(event.data) as Message;
      this.#heardMs = Date.now();
      this.#beat = message;
      this.receive(message);
      this.show();
    };
    source.addEventListener("ended", () => location.assign("/")); // the sign-in page says why
    source.onerror = () => {
      this.#isOpen = false;
      this.show();
      // The browser reconnects by itself and names its last message, unless the request was refused: the session may have ended.
      if (source.readyState !== EventSource.CLOSED) return;
      setTimeout(() => this.open(), RECONNECT_MS);
      // Without a session the home page redirects to the sign-in page, which says why the session ended.
      fetch("/", { headers: { Accept: "text/html" }, redirect: "manual" })
        .then((home) => home.type === "opaqueredirect" && location.assign("/"))
        .catch(() => undefined);
    };
  }

  /** Says whether the page is current, and which part isn't. */
  show(): void {
    const parts = Object.keys(this.#beat.away);
    const lost = !this.#isOpen || Date.now() - this.#heardMs > SILENT_MS;
    const key = lost ? (this.#heardMs ? "lost" : "connecting") : parts.length ? "part_away" : "connected";
    const said = this.words.say(key);
    const shown = key === "part_away" ? `${said}: ${parts.map((part) => this.words.say(`source_${part}`)).join(", ")}` : said;
    if (this.#shown.textContent !== shown) this.#shown.textContent = shown;
    this.#shown.className = `connection ${key === "connected" ? "ok" : key === "connecting" ? "wait" : "lost"}`;
  }
}
